"""Charts as inline SVG, in the colours of the page: a few kilobytes each, where matplotlib writes a hundred."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgrec.analysis.calibration import LEAST_DRAWN, Bins
from imgrec.html_page import text

CHART_WIDTH, CHART_HEIGHT = 400, 240  # of a chart, in its own units: pixels on a screen that has room for them
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 12, 30, 40  # around the drawn area
MOST_POINTS = 400  # of a line, more than it has pixels
WHOLE = ("epoch", "run")  # axes of whole numbers
_TICK_LETTERS = 6  # of a number on an axis, which the left margin has room for
MOST_MARKED = 60  # points up to which each has a mark that says its figure
CHART_STYLE = """
.chart { overflow: visible; width: 100%; max-width: 30rem; font: 12px system-ui, sans-serif } .chart text { fill: var(--soft) } .chart .grid { stroke: var(--line) }
.chart .line { fill: none; stroke-width: 2 } .chart .of0 { stroke: var(--accent) } .chart .of1 { stroke: var(--second); stroke-dasharray: 6 3 }
.chart text.of0 { fill: var(--accent); stroke: none } .chart text.of1 { fill: var(--second); stroke: none } .chart .mark { stroke: var(--soft); stroke-dasharray: 2 3 }
.chart .dot0 { fill: var(--accent) } .chart .dot1 { fill: var(--second) } .chart .bar { fill: var(--accent); opacity: .35 }
.shares { list-style: none; padding: 0; max-width: 40rem } .shares li { display: grid; grid-template-columns: 11rem 1fr 9rem; gap: .6rem; align-items: center }
.shares .bar { background: var(--accent); height: .8rem; border-radius: 2px; min-width: 1px }
@media (max-width: 34rem) { .shares li { grid-template-columns: 7.5rem 1fr 6rem } }
"""


class ChartLine(NamedTuple):
    """A line of a chart: as many x as y, finite."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`, of steps 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(times * power for times in (1, 2, 5, 10) if span / (times * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[ChartLine], *, unit: str = "", mark: float | None = None) -> str:
    """Lines over the epochs, the second one dashed; unit: "%" of shares; mark: an epoch to draw a line at. Empty without points."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    low, high = (min_max(value for line in lines for value in line.y) for min_max in (min, max))
    low = min(low, 0.0) if low < 0.5 * high else low
    first, last = (min_max(value for line in lines for value in line.x) for min_max in (min, max))
    frame = Frame(first, max(last, first + 1), low, high if high > low else low + (abs(low) or 1.0))
    parts = [*frame.axes("epoch", unit)]
    if mark is not None:
        x = frame.x(mark)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{MARGIN_TOP}" y2="{CHART_HEIGHT - MARGIN_BOTTOM}"/>')
    start = MARGIN_LEFT
    for number, line in enumerate(lines):
        parts.append(f'<line class="line of{number}" x1="{start}" x2="{start + 20}" y1="8" y2="8"/>')
        parts.append(f'<text class="of{number}" x="{start + 25}" y="12">{text(line.name)}</text>')
        start += 7 * len(line.name) + 45
        parts += _line(frame, line, number, unit)
    ends = "; ".join(f"{line.name} from {_figure(line.y[0], unit)} to {_figure(line.y[-1], unit)}" for line in lines)
    return svg(f"{title} by epoch: {ends}", parts)


def _line(frame: "Frame", line: ChartLine, number: int, unit: str) -> Iterator[str]:
    every = -(-len(line.x) // MOST_POINTS)
    kept = [*range(0, len(line.x) - 1, every), len(line.x) - 1]  # the last one always
    points = " ".join(f"{frame.x(line.x[i])},{frame.y(line.y[i])}" for i in kept)
    yield f'<polyline class="line of{number}" points="{points}"/>'
    for i in kept if len(kept) <= MOST_MARKED else kept[-1:]:
        said = f"epoch {line.x[i]:g}: {line.name} {_figure(line.y[i], unit)}"
        yield f'<circle class="dot{number}" cx="{frame.x(line.x[i])}" cy="{frame.y(line.y[i])}" r="2.5"><title>{text(said)}</title></circle>'


class Frame(NamedTuple):
    """The drawn area of a chart, and what its edges stand for."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        """Of a value from left to right."""
        return round(MARGIN_LEFT + (value - self.left) / (self.right - self.left) * (CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT), 1)

    def y(self, value: float) -> float:
        """Of a value from bottom to top."""
        return round(
            CHART_HEIGHT
            - MARGIN_BOTTOM
            - (value - self.bottom) / (self.top - self.bottom) * (CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM),
            1,
        )

    def axes(self, name: str, unit: str, name_y: str = "") -> Iterator[str]:
        """Lines of a grid with their numbers, and what runs from left to right."""
        for value in ticks(self.bottom, self.top):
            y = self.y(value)
            yield f'<line class="grid" x1="{MARGIN_LEFT}" x2="{CHART_WIDTH - MARGIN_RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text x="{MARGIN_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_text(value, unit)}</text>'
        for value in ticks(self.left, self.right):
            if name not in WHOLE or value == int(value):
                yield f'<text x="{self.x(value)}" y="{CHART_HEIGHT - MARGIN_BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        yield f'<text x="{(MARGIN_LEFT + CHART_WIDTH - MARGIN_RIGHT) / 2}" y="{CHART_HEIGHT - 6}" text-anchor="middle">{text(name)}</text>'
        if name_y:
            yield f'<text x="{MARGIN_LEFT}" y="12">{text(name_y)}</text>'


def _figure(value: float, unit: str) -> str:
    return f"{value:.2%}" if unit == "%" else f"{value:.4g}"


def tick_text(value: float, unit: str) -> str:
    """A number on an axis, short enough for its margin."""
    if unit == "%":
        return f"{100 * value:g}%"
    shown = f"{value:.3g}"
    if len(shown) <= _TICK_LETTERS:
        return shown
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def reliability_chart(bins: Bins, intervals: Sequence[Sequence[float]]) -> str:
    """The share that is right in each bin of confidence with its interval, [B, 2]; a calibrated network's points are on the diagonal."""
    frame = Frame(0, 1, 0, 1)
    most = max(int(bins.images.max()), 1)
    parts = [*frame.axes("probability of the predicted class", "%", "share that is right; bars: images")]
    parts.append(f'<line class="mark" x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}"/>')
    points = []
    for number, images in enumerate(bins.images.tolist()):
        left, right = (frame.x(float(edge)) for edge in bins.edges[number : number + 2])
        top = frame.y(0.3 * images / most)
        said = f"{images:,} images, {bins.confidence[number]:.1%} sure, {bins.accuracy[number]:.1%} right"
        if images:
            parts.append(
                f'<rect class="bar" x="{left}" y="{top}" width="{max(right - left - 1, 1):.1f}" height="{frame.y(0) - top:.1f}"><title>{said}</title></rect>'
            )
        if images >= min(LEAST_DRAWN, most):
            x, y = frame.x(float(bins.confidence[number])), frame.y(float(bins.accuracy[number]))
            low, high = (frame.y(end) for end in intervals[number])
            points.append(f"{x},{y}")
            parts.append(f'<line class="line of0" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
            parts.append(f'<circle class="dot0" cx="{x}" cy="{y}" r="3.5"><title>{said}</title></circle>')
    parts.append(f'<polyline class="line of0" points="{" ".join(points)}"/>')
    return svg("Reliability: the share that is right by the probability of the predicted class", parts)


def svg(label: str, parts: Sequence[str]) -> str:
    """A chart of these parts; label: what it shows, for who cannot see it."""
    return f'<svg class="chart" role="img" aria-label="{text(label)}" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}">{"".join(parts)}</svg>'


def share_bars(shares: Sequence[tuple[str, float, str]]) -> str:
    """A bar each of (name, share from 0 to 1, what it says)."""
    most = max((share for _, share, _ in shares), default=0) or 1
    rows = "".join(
        f'<li><span>{text(name)}</span><span class="bar" style="width: {100 * share / most:.1f}%"></span><span class="n">{text(said)}</span></li>'
        for name, share, said in shares
    )
    return f'<ul class="shares">{rows}</ul>'
