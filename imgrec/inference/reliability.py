"""How far the probabilities of a test are from the shares that are right: figures, a sentence and a picture."""

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.calibration import LEAST_DRAWN, CalibrationError, calibration_error, reliability_bins
from imgrec.analysis.intervals import share_interval
from imgrec.config.schema import Node
from imgrec.inference.drawing import png_bytes, set_title
from imgrec.inference.split_predictions import SplitPredictions
from imgrec.terminal import percents


def measure_reliability(predictions: SplitPredictions, labels: NDArray[np.int64], temperature: float) -> Node:
    """The calibration errors without the temperature, and with it where it is not 1; labels: of the split that was predicted."""
    right = predictions.predicted == labels[predictions.indices]
    return {
        "temperature": temperature,
        "before": _errors(_confidence(predictions, before=True), right),
        "after": None if predictions.uncalibrated is None else _errors(predictions.probability, right),
    }


def _confidence(predictions: SplitPredictions, *, before: bool) -> NDArray[np.float32]:
    return predictions.uncalibrated if before and predictions.uncalibrated is not None else predictions.probability


def _errors(confidence: NDArray[np.float32], right: NDArray[np.bool]) -> Node:
    """Of both kinds of bins, with 95% intervals."""

    def node(error: CalibrationError) -> Node:
        return {"calibration_error": error.value, "interval": [error.low, error.high]}

    return {
        "equal_width": node(calibration_error(confidence, right, binning="equal_width")),
        "equal_mass": node(calibration_error(confidence, right, binning="equal_mass")),
    }


def reliability_sentence(measured: Node) -> str:
    """'calibration error 4.1% (3.2 to 5.0), 1.2% with temperature 1.43', of bins of equal width."""
    before, after = measured["before"]["equal_width"], measured["after"]
    sentence = f"calibration error {before['calibration_error']:.1%} {percents(before['interval'])}"
    if after is None:
        return sentence
    return f"{sentence}, {after['equal_width']['calibration_error']:.1%} with temperature {measured['temperature']:.2f}"


def draw_reliability(predictions: SplitPredictions, labels: NDArray[np.int64], measured: Node, *, title: str) -> bytes:
    """A PNG: the share that is right in each bin of confidence, with 95% intervals, and below how many images it has. No window."""
    from matplotlib.figure import Figure

    right = predictions.predicted == labels[predictions.indices]
    figure = Figure(figsize=(6, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="as often right as it says")
    labels_of = {"before": "without temperature", "after": f"with temperature {measured['temperature']:.2f}"}
    for name, color in (("before", "tab:orange"), ("after", "tab:blue")):
        if measured[name] is None:
            continue
        bins = reliability_bins(_confidence(predictions, before=name == "before"), right, binning="equal_width")
        error = measured[name]["equal_width"]["calibration_error"]
        filled = bins.images >= min(LEAST_DRAWN, bins.images.max())
        shares, images = bins.accuracy[filled], bins.images[filled]
        interval = share_interval(np.rint(shares * images), images)
        whiskers = np.abs(interval.T - shares)
        named = labels_of[name] if measured["after"] else "this network"
        label = f"{named}: calibration error {error:.1%}"
        above.errorbar(
            *(bins.confidence[filled], shares, whiskers),
            fmt="o-",
            markersize=4,
            capsize=2,
            elinewidth=1,
            color=color,
            label=label,
        )
        below.stairs(bins.images, bins.edges, color=color, linewidth=1.5)
    above.set(xlim=(0, 1.01), ylim=(0, 1.02), ylabel=f"share that is right (bins of {LEAST_DRAWN} images or more)")
    figure.legend(loc="outside upper left", fontsize=9, frameon=False)
    set_title(above, title)
    below.set(xlabel="probability of the predicted class", ylabel="images", yscale="log", ylim=(0.8, None))
    return png_bytes(figure)
