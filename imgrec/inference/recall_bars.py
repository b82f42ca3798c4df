"""The recall of each class as a picture."""

from typing import Any

from imgrec.inference.drawing import png_bytes, set_title
from imgrec.inference.metrics import Report
from imgrec.inference.picture_text import class_labels

MOST_BARS = 40  # classes, which a screen shows
ROOM = 0.3  # recall from which the text has room in its bar


def weakest_recalls(report: Report, most: int) -> list[dict[str, Any]]:
    """The `most` rows of per_class with samples that have the lowest recall, the lowest first, equal ones in class order."""
    return sorted((row for row in report.per_class if row["support"]), key=lambda row: row["recall"])[:most]


def draw_recall_bars(report: Report, *, title: str) -> bytes:
    """A PNG: a bar for each class, the weakest on top, with its share and its samples; of many classes the weakest MOST_BARS. No window."""
    from matplotlib.figure import Figure

    rows = weakest_recalls(report, MOST_BARS)
    names = [row["name"] for row in report.per_class]
    labels, legend, fonts = class_labels(names, [names.index(row["name"]) for row in rows], width=24, line=90)
    figure = Figure(figsize=(7, 1.4 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(rows)), [row["recall"] for row in rows], color="#4c78a8", height=0.7)
    for at, row in enumerate(rows):
        inside = row["recall"] > ROOM
        left, color = (0, "white") if inside else (row["recall"], "black")
        axes.text(left + 0.01, at, f"{row['recall']:.1%} of {row['support']:,}", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(rows)), labels, family=fonts, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="recall: the share of the class's images that were recognised")
    axes.axvline(report.macro_recall, color="#e45756", linewidth=1, label=f"mean over the classes, {report.macro_recall:.1%}")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    figure.legend(loc="outside lower right", fontsize=8, frameon=False)
    figure.supxlabel(legend, fontsize=7, parse_math=False)
    shown = "" if len(rows) == len(report.per_class) else f", the weakest {len(rows)} of {len(report.per_class)} classes"
    set_title(axes, title + shown)
    return png_bytes(figure)
