"""Charts of a sweep as inline SVG: its best run so far, and all runs over parallel axes."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgrec.html_page import text
from imgrec.report.charts import MARGIN_LEFT, Frame, svg, tick_text, ticks
from imgrec.sweeps.arguments import Argument
from imgrec.sweeps.table import format_metric, short_value

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 960, 330, 52, 16, 24, 84  # of the parallel axes
MOST_AXES = 12  # of keys that are drawn: more have no room for their names
SWEEP_STYLE = """
.chart .pruned { fill: none; stroke: var(--soft); stroke-width: 1.5 } .chart .best { fill: var(--accent); stroke: var(--paper); stroke-width: 1.5 }
.chart.parallel { max-width: none; min-width: 40rem } .parallel .axis { stroke: var(--ink) }
.parallel polyline { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .55 } .parallel polyline:hover { stroke: var(--second); stroke-width: 3; opacity: 1 }
.parallel .upper { stroke: var(--accent); stroke-width: 1.6; opacity: .8 } .parallel .first { stroke: var(--accent); stroke-width: 4; opacity: 1 }
.parallel .cut { stroke-dasharray: 3 4; opacity: .45 } .parallel .tick { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; font-size: 11px }
.parallel .name { fill: var(--ink) }
"""


class SweepRun(NamedTuple):
    """A run with a figure, as the charts need it."""

    number: int
    settings: dict[str, str]
    value: float
    pruned: bool


def history_chart(runs: Sequence[SweepRun], monitor: str, *, low_is_good: bool) -> str:
    """A dot for each run, hollow where it was pruned, and a line through the best so far; at least one run is finished."""
    unit = "" if monitor.endswith("loss") else "%"
    line = best_so_far(runs, low_is_good=low_is_good)
    best = line[-1][1]
    bottom, top = shown_range([run.value for run in runs if not run.pruned], low_is_good=low_is_good)
    first, last = runs[0].number, runs[-1].number
    frame = Frame(first, max(last, first + 1), bottom, top)
    parts = [*frame.axes("run", unit)]
    parts.append(f'<line class="line of0" x1="{MARGIN_LEFT}" x2="{MARGIN_LEFT + 20}" y1="8" y2="8"/>')
    parts.append(f'<text class="of0" x="{MARGIN_LEFT + 25}" y="12">best so far</text>')
    parts.append(f'<circle class="dot0" cx="{MARGIN_LEFT + 125}" cy="8" r="3"/><text x="{MARGIN_LEFT + 133}" y="12">run</text>')
    parts.append(
        f'<circle class="pruned" cx="{MARGIN_LEFT + 175}" cy="8" r="3"/><text x="{MARGIN_LEFT + 183}" y="12">pruned</text>'
    )
    steps = [point for (x, y), (_, before) in zip(line, [line[0], *line], strict=False) for point in ((x, before), (x, y))]
    parts.append(f'<polyline class="line of0" points="{" ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in steps)}"/>')
    parts += [_dot(frame, run, monitor) for run in runs]
    said = f"Best {monitor} so far by run: {format_metric(line[0][1], monitor)} at run {line[0][0]}, {format_metric(best, monitor)} at run {last}"
    return svg(said, parts)


def best_so_far(runs: Sequence[SweepRun], *, low_is_good: bool) -> list[tuple[int, float]]:
    """(run, best figure of the finished runs up to it) from the first that is finished on."""
    line: list[tuple[int, float]] = []
    for run in runs:
        if not run.pruned:
            known = [line[-1][1]] if line else []
            line.append((run.number, (min if low_is_good else max)([run.value, *known])))
        elif line:
            line.append((run.number, line[-1][1]))
    return line


def _dot(frame: Frame, run: SweepRun, monitor: str) -> str:
    said = f"run {run.number}{' (pruned)' * run.pruned}: {format_metric(run.value, monitor)}"
    x, y = frame.x(run.number), frame.y(min(max(run.value, frame.bottom), frame.top))
    kind = "pruned" if run.pruned else "dot0"
    if frame.bottom <= run.value <= frame.top:
        return f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"><title>{text(said)}</title></circle>'
    point = 5 if run.value < frame.bottom else -5
    path = f"M{x - 4},{y - point / 2}h8l-4,{point}z"
    return f'<path class="{kind}" d="{path}"><title>{text(said)}, outside the chart</title></path>'


def shown_range(values: Sequence[float], *, low_is_good: bool) -> tuple[float, float]:
    """The axis of finished runs' figures: one that is far worse than the others must not flatten them."""
    ordered = sorted(values, reverse=not low_is_good)  # the best first
    best, middle, worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    limit = best + 4 * (middle - best)
    far = (min if low_is_good else max)(worst, limit) if middle != best else worst
    low, high = sorted((best, far))
    space = 0.06 * (high - low) or 0.01 * abs(high) or 0.01
    return low - space, high + space


class _Axis(NamedTuple):
    """One of the parallel axes: where a value lies on it, 0 to 1 from bottom to top, and its marks."""

    argument: Argument

    def place(self, value: str) -> float:
        if self.argument.kind == "list":
            return self.argument.values.index(value) / (len(self.argument.values) - 1)
        low, high = map(self._scaled, self.argument.values)
        return (self._scaled(value) - low) / (high - low)

    def _scaled(self, value: str) -> float:
        return math.log10(float(value)) if self.argument.kind == "log" else float(value)

    def marks(self) -> list[str]:
        values = self.argument.values
        if self.argument.kind == "list":
            every = -(-len(values) // 10)
            return values[::every]
        low, high = map(float, values)
        if self.argument.kind == "log":
            powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
            inner = [10.0**power for power in powers]
        else:
            inner = ticks(low, high, 4)
        return [f"{value:g}" for value in inner] if len(inner) > 1 else [f"{low:g}", f"{high:g}"]


def parallel_chart(runs: Sequence[SweepRun], arguments: Sequence[Argument], monitor: str, *, low_is_good: bool) -> str:
    """A line for each run over an axis for each key, and one for `monitor`; the best is drawn last, so that it is on top."""
    axes = [_Axis(argument) for argument in arguments[:MOST_AXES]]
    step = (_WIDTH - _LEFT - _RIGHT) / len(axes)
    bottom, top = shown_range([run.value for run in runs if not run.pruned], low_is_good=low_is_good)
    sign = 1 if low_is_good else -1
    ranked = sorted(runs, key=lambda run: (run.pruned, sign * run.value))
    finished = sum(not run.pruned for run in runs)
    parts = []
    for rank, run in reversed(list(enumerate(ranked))):
        places = [axis.place(run.settings[axis.argument.key]) for axis in axes]
        places.append((min(max(run.value, bottom), top) - bottom) / (top - bottom))
        points = " ".join(f"{_LEFT + number * step:.1f},{_y(place)}" for number, place in enumerate(places))
        kind = "cut" if run.pruned else "first" if rank == 0 else "upper" if rank < finished / 4 else ""
        values = ", ".join(f"{axis.argument.key}={short_value(run.settings[axis.argument.key])}" for axis in axes)
        said = f"run {run.number}: {values}; {monitor} {format_metric(run.value, monitor)}{' (pruned)' * run.pruned}"
        parts.append(f'<polyline class="{kind}" points="{points}"><title>{text(said)}</title></polyline>')
    for number, axis in enumerate(axes):
        marks = [(axis.place(mark), short_value(mark)) for mark in axis.marks()]
        parts += _axis(_LEFT + number * step, axis.argument.key, marks, raised=number % 2 == 1 and len(axes) > 6)
    unit = "" if monitor.endswith("loss") else "%"
    marks = [((value - bottom) / (top - bottom), tick_text(value, unit)) for value in ticks(bottom, top, 5)]
    parts += _axis(_LEFT + len(axes) * step, monitor, marks, raised=False)
    best = ranked[0]
    values = ", ".join(f"{axis.argument.key}={short_value(best.settings[axis.argument.key])}" for axis in axes)
    label = f"Values of {len(runs)} runs over parallel axes; the best, run {best.number}, has {values} and {monitor} {format_metric(best.value, monitor)}"
    return f'<svg class="chart parallel" role="img" aria-label="{text(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def _y(place: float) -> float:
    return round(_HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axis(x: float, name: str, marks: Sequence[tuple[float, str]], *, raised: bool) -> Iterator[str]:
    yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0)}" y2="{_y(1)}"/>'
    anchor = "start" if x < _LEFT + 1 else "middle"
    left = 2 if x < _LEFT + 1 else x
    group, _, last = name.rpartition(".")
    top = _TOP - 34 if raised else _TOP - 22
    for line, words in enumerate((f"{group}." if group else "", last)):
        yield f'<text class="name" x="{left:.1f}" y="{top + 12 * line}" text-anchor="{anchor}">{text(words)}</text>'
    for place, said in marks:
        yield f'<text class="tick" x="{x + 4:.1f}" y="{_y(place) + 4}">{text(said)}</text>'
