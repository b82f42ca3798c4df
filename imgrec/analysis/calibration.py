"""Calibration: whether images that a network is 80% sure of are right in 80% of the cases, and the temperature that helps.

Guo 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Binning = Literal["equal_width", "equal_mass"]
BINS = 15  # as in Guo 2017
LEAST_DRAWN = 10  # images of a bin, where one has as many, to be drawn: the share of fewer says nothing
RESAMPLES = 1000
LEVELS = 500  # of confidence that the bootstrap tells apart: their width of 0.002 is far below the error of a share
TEMPERATURES = (0.01, 100.0)  # between which one is fitted


class Bins(NamedTuple):
    """The bins of a reliability diagram; where a bin is empty its accuracy and confidence are 0."""

    edges: NDArray[np.float64]  # [B + 1], of the confidence
    images: NDArray[np.int64]  # [B]
    confidence: NDArray[np.float64]  # [B], mean probability of the predicted class
    accuracy: NDArray[np.float64]  # [B], share of the images that are right


class CalibrationError(NamedTuple):
    """The expected calibration error, from 0 to 1, and its 95% interval."""

    value: float
    low: float
    high: float


def reliability_bins(confidence: NDArray[np.floating], right: NDArray[np.bool], *, binning: Binning, bins: int = BINS) -> Bins:
    """confidence: float [N], probability of the predicted class; right: bool [N]; N > 0.

    equal_width: of 1/bins each. equal_mass: by quantiles of the confidence, so that each has as many images, but for equal ones.
    """
    place, edges = _places(confidence, binning, bins)
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, right))
    means = [np.divide(total, count, out=np.zeros(bins), where=count > 0) for total in sums]
    return Bins(edges, count, *means)


def calibration_error(
    confidence: NDArray[np.floating], right: NDArray[np.bool], *, binning: Binning, bins: int = BINS, seed: int = 0
) -> CalibrationError:
    """Mean over the images of |accuracy - mean confidence| of their bin; arguments as for `reliability_bins`.

    By chance the error of a sample is larger than that of all images, and the error of a resample larger still. So the low
    end is that of the basic bootstrap, which takes it off (Davison and Hinkley 1997, section 5.2), or 0 where the images may
    be those of a calibrated network (Broecker and Smith 2007); the high end is the 97.5% quantile of resamples. Drawn again,
    91 to 99 of 100 intervals hold the error of all images, from 150 images to 10,000.
    """
    place, _ = _places(confidence, binning, bins)
    difference: NDArray[np.float64] = right - confidence.astype(np.float64)
    value = float(np.abs(np.bincount(place, weights=difference, minlength=bins)).sum() / len(place))
    resampled, calibrated = _resampled_errors(confidence, right, place, bins, seed)
    low = 0.0 if value <= calibrated else max(0.0, 2 * value - resampled)
    return CalibrationError(value, min(value, low), max(value, resampled))


def _places(confidence: NDArray[np.floating], binning: Binning, bins: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The bin of each image, and the edges."""
    values = confidence.astype(np.float64)
    shares = np.linspace(0, 1, bins + 1)
    edges = shares if binning == "equal_width" else np.quantile(values, shares)
    return np.searchsorted(edges[1:-1], values), edges


def _resampled_errors(
    confidence: NDArray[np.floating], right: NDArray[np.bool], place: NDArray[np.intp], bins: int, seed: int
) -> tuple[float, float]:
    """The 97.5% quantiles of the errors of resamples, and of a calibrated network with these confidences.

    Images of one bin and level that are alike right or wrong are drawn as one cell: 0.5 s for a million, half of it to find the cells.
    """
    level = (confidence * LEVELS).astype(np.int64)
    cells, cell, count = np.unique((place * (LEVELS + 1) + level) * 2 + right, return_inverse=True, return_counts=True)
    mean = np.bincount(cell, weights=confidence) / count
    in_bins = np.zeros((len(cells), bins))
    in_bins[np.arange(len(cells)), cells // (2 * (LEVELS + 1))] = 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(place), count / len(place), size=RESAMPLES) * (cells % 2 - mean)
    calibrated = rng.binomial(count, mean.clip(0, 1), size=(RESAMPLES, len(cells))) - count * mean
    high, chance = (float(np.quantile(np.abs(sums @ in_bins).sum(axis=1), 0.975)) / len(place) for sums in (drawn, calibrated))
    return high, chance


def log_loss_at(temperature: float, logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(logits / temperature) at the labels; logits: float [N, K], labels: int64 [N]."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature within TEMPERATURES with the least `log_loss_at`, by L-BFGS in float64 on the device of the logits.

    1.0 where every image is right: the loss would fall to 0 with the temperature, and every answer be called certain.
    """
    scores = logits.double()
    if bool((scores.argmax(dim=1) == labels).all()):
        return 1.0
    inverse = torch.zeros((), dtype=torch.float64, device=scores.device, requires_grad=True)  # its logarithm

    def loss() -> Tensor:
        return F.cross_entropy(scores * inverse.exp(), labels)

    with torch.enable_grad():
        for bound in TEMPERATURES:  # the loss has one minimum: it is at a bound where the loss still falls there
            inverse.data.fill_(-np.log(bound))
            (slope,) = torch.autograd.grad(loss(), inverse)
            if (slope < 0) == (bound < 1) and slope != 0:
                return bound
        inverse.data.zero_()
        optimizer = torch.optim.LBFGS(
            [inverse], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(np.clip(np.exp(-inverse.item()), *TEMPERATURES))
