"""The metrics of a report as tables, for a terminal or a file."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imgrec.errors import first_names, printable
from imgrec.inference.metrics import Report, worst_classes

# What a report says of the whole: key, name, and the key of its interval.
TOTALS = (
    ("accuracy", "accuracy", "accuracy_interval"),
    ("top5", "top-5 accuracy", "top5_interval"),
    ("balanced_accuracy", "balanced accuracy", "macro_recall_interval"),
    ("macro_f1", "macro F1", "macro_f1_interval"),
    ("matthews_correlation", "Matthews correlation", None),
    ("macro_auroc", "AUROC, macro", None),
    ("macro_average_precision", "average precision, macro", None),
    ("log_loss", "log loss", None),
    ("brier", "Brier score", None),
    ("loss", "loss", None),
)


def report_tables(report: Report, *, most: int, rules: bool) -> Group:
    """The metrics per class, worst F1 first where there are more than `most` classes, and those of the whole.

    rules: lines below the headings, for a terminal; without, plain aligned columns.
    """
    rows = report.per_class if len(report.per_class) <= most else worst_classes(report, most)
    table = _table(
        rules, "class" if len(rows) == len(report.per_class) else f"worst {len(rows)} of {len(report.per_class)} classes"
    )
    table.add_column("precision", justify="right")
    table.add_column("recall (95% interval)", no_wrap=True)
    for heading in ("f1", "images"):
        table.add_column(heading, justify="right")
    for row in rows:
        recall = _with_interval(row["recall"], row["recall_interval"] if row["support"] else None)
        table.add_row(Text(printable(row["name"])), f"{row['precision']:.4f}", recall, f"{row['f1']:.4f}", str(row["support"]))
    recall = _with_interval(report.macro_recall, report.macro_recall_interval)
    macro = (f"{report.macro_precision:.4f}", recall, f"{report.macro_f1:.4f}")
    table.add_row("macro mean", *macro, str(report.count), style="bold")
    parts: list[RenderableType] = [table, "", _totals(report, rules)]
    if report.absent_classes:
        count = f"{len(report.absent_classes)} of {len(report.per_class)} classes"
        parts.append(Text(f"without images, so not in the macro mean: {count} ({first_names(report.absent_classes, 5)})"))
    return Group(*parts)


def _totals(report: Report, rules: bool) -> Table:
    table = _table(rules, f"all {report.count:,} images")
    table.add_column("")
    table.add_column("95% interval")
    for key, name, key_of_interval in TOTALS:
        figure, interval = getattr(report, key), key_of_interval and getattr(report, key_of_interval)
        if figure is not None:
            table.add_row(name, f"{figure:.4f}", "" if interval is None else "{:.4f} to {:.4f}".format(*interval))
    return table


def _table(rules: bool, heading: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if rules else None, pad_edge=False, show_edge=False)
    table.add_column(heading, overflow="fold")  # a long class name goes on in the next line
    return table


def _with_interval(share: float, interval: Sequence[float] | None) -> str:
    """'0.9722 (0.858 to 0.999)'"""
    return f"{share:.4f}" + ("" if interval is None else " ({:.3f} to {:.3f})".format(*interval))
