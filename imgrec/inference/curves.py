"""Figures of several runs by epoch, over one another, as a picture."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from imgrec.inference.drawing import png_bytes
from imgrec.inference.picture_text import drawn_text, shortened

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow, which white paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#8B5A2B")
STYLES = ("-", "--", ":", "-.")  # after each round of colours another one
LABEL_WIDTH = 110  # letters of a line of the legend
MARKED_EPOCHS = 12  # epochs up to which each has a marker
STEEP = 10.0  # largest over smallest value above which the axis is logarithmic

Line = tuple[Sequence[float], Sequence[float]]  # epochs, values


def draw_curves(panels: Mapping[str, Sequence[Sequence[Line]]], labels: Sequence[str]) -> bytes:
    """A PNG with a panel of each figure; of each of the labels one or several lines, which have one colour. No window."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    texts = [shortened(label, LABEL_WIDTH) for label in labels]
    figure = Figure(figsize=(5.5 * len(panels), 4 + 0.22 * len(labels)), layout="constrained", facecolor="white")
    looks: list[dict[str, Any]] = [
        {"color": color, "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
        for number, color in zip(range(len(labels)), cycle(COLORS), strict=False)
    ]
    for number, (name, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for lines, look in zip(curves, looks, strict=True):
            for epochs, values in lines:
                marker = "o" if len(epochs) <= MARKED_EPOCHS else ""
                axes.plot(epochs, values, marker=marker, markersize=3, linewidth=1.4, alpha=0.9, **look)
        _scale(axes, [values for lines in curves for _, values in lines if values], is_share=name.endswith("accuracy"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    shown, fonts = zip(*map(drawn_text, texts), strict=True)
    handles = [Line2D([], [], linewidth=2, **look) for look in looks]
    legend = figure.legend(handles, shown, loc="outside lower left", fontsize=9, frameon=False)
    for text, families in zip(legend.get_texts(), fonts, strict=True):
        text.set(family=families, parse_math=False)
    return png_bytes(figure)


def _scale(axes: Any, curves: Sequence[Sequence[float]], *, is_share: bool) -> None:
    """Limits and ticks of the values."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    low, high = min(map(min, curves), default=0.0), max(map(max, curves), default=1.0)
    if is_share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
        # The first epochs, which are far below, would press together those that tell the runs apart.
        later = min((min(values[len(values) // 2 :]) for values in curves), default=low)
        bottom = max(low, later - 0.2 * (high - later))
        margin = max(0.05 * (high - bottom), 0.002)
        axes.set_ylim(bottom - margin, high + margin)
    elif low > 0 and high > STEEP * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
