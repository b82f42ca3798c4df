"""The confusion matrix as a table for the terminal and as a picture."""

from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from imgrec.errors import printable
from imgrec.inference.drawing import png_bytes, set_title
from imgrec.inference.metrics import Report
from imgrec.inference.picture_text import class_labels

MOST_PAIRS = 10  # confusions listed where the matrix does not fit
MOST_NUMBERS = 20  # classes up to which the cells show their counts
MOST_NAMES = 60  # classes up to which the axes have names


def confusion_table(report: Report, *, width: int, most: int) -> Any:
    """A row for each true class; above `most` classes or `width` characters only the most frequent confusions."""
    names = [printable(row["name"]) for row in report.per_class]
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
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("true", no_wrap=True)
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for true, (label, counts) in enumerate(zip(labels, report.confusion, strict=True)):
        table.add_row(Text(label), *(_cell(count, right=true == column) for column, count in enumerate(counts)))
    return Group(Text("confusion matrix: a row for each true class, a column for each predicted one", style="bold"), table)


def _cell(count: int, *, right: bool) -> Text:
    return Text("." if count == 0 else str(count), style="green" if right else "red" if count else "dim")


def _pairs(report: Report, names: list[str]) -> Any:
    matrix = np.array(report.confusion)
    support = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(int(cell // len(names)), int(cell % len(names))) for cell in order if matrix.flat[cell]]
    if not pairs:
        return Text("no image was predicted as another class", style="bold")
    table = Table("true", "predicted", box=None, pad_edge=False, show_edge=False)
    for heading in ("images", "of its class"):
        table.add_column(heading, justify="right")
    for true, predicted in pairs:
        count = matrix[true, predicted]
        table.add_row(Text(names[true]), Text(names[predicted]), str(count), f"{count / support[true]:.1%}")
    return Group(Text("most frequent confusions", style="bold"), table)


def draw_confusion_matrix(report: Report, *, title: str) -> bytes:
    """A PNG: each row's shares as shades, and for few classes the counts. No window."""
    from matplotlib.figure import Figure

    names = [row["name"] for row in report.per_class]
    matrix = np.array(report.confusion)
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    side = float(np.clip(2.5 + 0.42 * len(names), 5, 14))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    if len(names) <= MOST_NAMES:
        labels, legend, fonts = class_labels(names, width=24, line=int(14 * side))
        axes.set_xticks(
            range(len(names)), labels, rotation=90 if max(map(len, labels)) > 2 else 0, family=fonts, parse_math=False
        )
        axes.set_yticks(range(len(names)), labels, family=fonts, parse_math=False)
        figure.supxlabel(legend, fontsize=7, parse_math=False)
    if len(names) <= MOST_NUMBERS:
        for (true, predicted), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    set_title(axes, title)
    return png_bytes(figure)
