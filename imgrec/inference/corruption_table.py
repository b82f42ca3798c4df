"""The accuracy under corruptions: a table, a sentence and a picture."""

from dataclasses import asdict
from itertools import groupby

from rich import box
from rich.table import Table

from imgrec.analysis.robustness import Corrupted, Robustness
from imgrec.config.schema import Node
from imgrec.data.corruptions import SEVERITIES
from imgrec.inference.curves import COLORS
from imgrec.inference.drawing import png_bytes
from imgrec.inference.metrics import Report
from imgrec.inference.picture_text import drawn_text
from imgrec.terminal import percent, percents


def corruptions_table(robustness: Robustness, *, rules: bool) -> Table:
    """A row for each corruption below that of its family, and one of all. rules: lines below the headings, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD if rules else None, pad_edge=False, show_edge=False)
    table.add_column("corruption", no_wrap=True)
    table.add_column("accuracy (95%)", justify="right", no_wrap=True)
    for severity in SEVERITIES:
        table.add_column(f"severity {severity}" if severity == SEVERITIES[0] else str(severity), justify="right", no_wrap=True)

    def add(row: Corrupted, name: str, style: str | None) -> None:
        shares = (f"{100 * share:.1f}" for share in row.by_severity)
        table.add_row(name, f"{percent(row.accuracy)} {percents(row.interval)}", *shares, style=style)

    families = {family.name: family for family in robustness.families}
    for family, members in groupby(robustness.corruptions, key=lambda pair: pair[0]):
        rows = [row for _, row in members]
        if len(rows) > 1:
            add(families[family], family, "bold")
        for row in rows:
            add(row, f"  {row.name}" if len(rows) > 1 else row.name, None)
    if len(robustness.corruptions) > 1:
        add(robustness.whole, "mean", "bold")
    return table


def corruptions_sentence(robustness: Robustness, clean: Report) -> str:
    """'under corruptions 61.30% (60.5 to 62.1) of the images are right, without 88.35%; least under fog (31.2%)'"""
    whole = robustness.whole
    said = f"under corruptions {percent(whole.accuracy)} {percents(whole.interval)} of the images are right, without {percent(clean.accuracy)}"
    if len(robustness.corruptions) == 1:
        return said
    worst = min((row for _, row in robustness.corruptions), key=lambda row: row.accuracy)
    return f"{said}; least under {worst.name} ({worst.accuracy:.1%})"


def corruptions_node(robustness: Robustness, clean: Report) -> Node:
    """For JSON."""
    return {
        "clean_accuracy": clean.accuracy,
        "mean": asdict(robustness.whole),
        "families": [asdict(row) for row in robustness.families],
        "corruptions": [{"family": family, **asdict(row)} for family, row in robustness.corruptions],
    }


def draw_corruptions(robustness: Robustness, clean: Report, *, title: str) -> bytes:
    """A PNG: a panel of each family, with the accuracy by severity of each corruption and its intervals. No window."""
    from matplotlib.figure import Figure

    families = [family for family, _ in groupby(robustness.corruptions, key=lambda pair: pair[0])]
    figure = Figure(figsize=(max(6.5, 3.4 * len(families)), 4.2), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        rows = [row for name, row in robustness.corruptions if name == family]
        mean = next(row for row in robustness.families if row.name == family)
        for row, color in zip(rows, COLORS, strict=False):
            shares = (clean.accuracy, *row.by_severity)
            ends = (tuple(clean.accuracy_interval), *row.severity_intervals)
            axes.plot((0, *SEVERITIES), shares, marker="o", markersize=4, color=color, label=row.name)
            axes.fill_between((0, *SEVERITIES), *zip(*ends, strict=True), color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="severity (0: as it is)", ylim=(0, 1.02), xticks=(0, *SEVERITIES))
        axes.set_title(f"{family}: {mean.accuracy:.1%} {percents(mean.interval)}", fontsize=10)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    panels[0].set(ylabel="accuracy, with 95% intervals")
    text, fonts = drawn_text(title)
    figure.suptitle(text, fontsize=11, family=fonts, parse_math=False)
    return png_bytes(figure)
