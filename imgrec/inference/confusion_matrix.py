"""The confusion matrix to look at: on the terminal, and as a picture."""

import io
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from imgrec.inference.metrics import Report

MOST_PAIRS = 10  # confusions listed where the matrix does not fit
MOST_NUMBERS = 20  # classes whose cells have their counts written in; up to NAMES, axes have names
MOST_NAMES = 60


def confusion_table(report: Report, *, width: int, most: int) -> Any:
    """Rows are the true classes, columns the predicted ones; above `most` classes or `width` characters the confusions alone."""
    names = [row["name"] for row in report.per_class]
    if len(names) > most:
        return _pairs(report, names)
    digits = len(str(np.max(report.confusion)))
    cell = max(digits, *map(len, names))
    headings, labels = names, names
    if max(map(len, names)) + len(names) * (cell + 2) > width:  # columns by number
        headings = [str(number) for number in range(len(names))]
        labels = [f"{number} {name}" for number, name in enumerate(names)]
        cell = max(digits, len(headings[-1]))
    if max(map(len, labels)) + len(names) * (cell + 2) > width:
        return _pairs(report, names)
    found = Table(box=None, pad_edge=False, show_edge=False)
    found.add_column("true", no_wrap=True)
    for heading in headings:
        found.add_column(Text(heading), justify="right", no_wrap=True)
    for place, (label, counts) in enumerate(zip(labels, report.confusion, strict=True)):
        found.add_row(Text(label), *(_cell(count, right=place == column) for column, count in enumerate(counts)))
    return Group(Text("confusion matrix: a row for each true class, a column for each predicted one", style="bold"), found)


def _cell(count: int, *, right: bool) -> Text:
    return Text("." if count == 0 else str(count), style="green" if right else "red" if count else "dim")


def _pairs(report: Report, names: list[str]) -> Any:
    matrix = np.array(report.confusion)
    support = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(int(place // len(names)), int(place % len(names))) for place in order if matrix.flat[place]]
    if not pairs:
        return Text("no image was taken for another class", style="bold")
    found = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("true", "taken for"):
        found.add_column(heading)
    found.add_column("images", justify="right")
    found.add_column("of its class", justify="right")
    for true, taken in pairs:
        found.add_row(
            Text(names[true]), Text(names[taken]), str(matrix[true, taken]), f"{matrix[true, taken] / support[true]:.1%}"
        )
    return Group(Text("most frequent confusions", style="bold"), found)


def draw_confusion_matrix(report: Report, *, title: str) -> bytes:
    """A PNG: each row's shares as shades, and for few classes the counts. No window, no font files of ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row["name"] for row in report.per_class]
    matrix = np.array(report.confusion)
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    side = float(np.clip(2.5 + 0.42 * len(names), 5, 14))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
    if len(names) <= MOST_NUMBERS:
        for (true, taken), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[true, taken] > 0.5 else "black"
                axes.text(taken, true, str(count), ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10, parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": "imgrec"})
    return content.getvalue()


def _short(name: str) -> str:
    name = name if len(name) <= 24 else f"{name[:21]}..."
    return name.replace("$", r"\$")  # no formulas
