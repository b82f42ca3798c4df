"""The accuracy on slices of the images: a table, a sentence and a picture."""

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from imgrec.analysis.slices import MOST_SLICES, Slice
from imgrec.errors import plural, printable
from imgrec.inference.drawing import png_bytes, set_title
from imgrec.inference.image_facts import Sliced
from imgrec.inference.picture_text import class_labels
from imgrec.terminal import percent, percents

NAMED_SLICES = 3  # slices that the sentence names
VERDICT_COLORS = {"worse": "#D55E00", "better": "#009E73", "no difference": "#0072B2", "too few images": "#b0b0b0"}


def slices_table(slices: Sequence[Slice], *, rules: bool) -> Table:
    """A row for each slice. rules: lines below the headings, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD if rules else None, pad_edge=False, show_edge=False)
    table.add_column("slice", overflow="fold")
    for heading in ("images", "accuracy", f"95% of all {len(slices)}", "rest", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in slices:
        table.add_row(
            Text(printable(f"{row.by} {row.name}")),
            f"{row.images:,}",
            percent(row.accuracy),
            percents(row.interval),
            percent(row.rest_accuracy),
            "< 0.001" if row.p_corrected < 0.001 else f"{row.p_corrected:.3f}",
            "" if row.verdict == "no difference" else row.verdict,
            style="bold" if row.verdict == "worse" else None,
        )
    return table


def slices_sentences(sliced: Sliced) -> list[str]:
    """Where it is worse than elsewhere, and what the slices leave out."""
    slices = sliced.slices
    worse = sorted((row for row in slices if row.verdict == "worse"), key=lambda row: row.accuracy)
    named = [
        f"{row.by} {printable(row.name)} ({row.accuracy:.1%}, elsewhere {row.rest_accuracy:.1%})" for row in worse[:NAMED_SLICES]
    ]
    more = f" and {plural(len(worse) - NAMED_SLICES, 'more slice')}" if len(worse) > NAMED_SLICES else ""
    said = []
    if slices:
        said.append(
            f"worse than elsewhere: {', '.join(named)}{more}" if worse else "no slice is shown to be worse than the others"
        )
        said.append(f"(intervals and p are corrected for {plural(len(slices), 'slice')}; p by Fisher's exact test)")
    for each in sliced.slicings:
        if each.pooled:
            said.append(
                f"by={each.by}: the {MOST_SLICES} most frequent values are slices, {each.pooled:,} rarer ones are one together"
            )
        if len(each.slices) == 1:
            said.append(
                f"by={each.by}: all images are in one slice ({printable(each.slices[0])}), so there is nothing to compare"
            )
    return said


def draw_slices(slices: Sequence[Slice], *, accuracy: float, title: str) -> bytes:
    """A PNG: the accuracy of each slice with its interval, beside that of all images. No window."""
    from matplotlib.figure import Figure

    names = [f"{row.name}  ({row.images:,})" for row in slices]
    labels, legend, fonts = class_labels(names, width=36, line=90)
    groups = [(by, list(rows)) for by, rows in groupby(range(len(slices)), key=lambda row: slices[row].by)]
    places = [row + 1.0 * number for number, (_, rows) in enumerate(groups) for row in rows]
    figure = Figure(figsize=(7.5, 1.7 + 0.27 * (places[-1] + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(accuracy, color="black", linewidth=1, linestyle="--", label=f"all images, {accuracy:.1%}")
    for verdict, color in VERDICT_COLORS.items():
        chosen = [(place, row) for place, row in zip(places, slices, strict=True) if row.verdict == verdict]
        if chosen:
            shares = [row.accuracy for _, row in chosen]
            whiskers = [
                [row.accuracy - row.interval[0] for _, row in chosen],
                [row.interval[1] - row.accuracy for _, row in chosen],
            ]
            axes.errorbar(
                *(shares, [place for place, _ in chosen]),
                xerr=whiskers,
                fmt="o",
                markersize=5,
                capsize=3,
                color=color,
                label={"worse": "worse than the rest", "better": "better than the rest"}.get(verdict, verdict),
            )
    axes.set_yticks(places, labels, family=fonts, parse_math=False)
    low = min(row.interval[0] for row in slices)
    axes.set(
        ylim=(places[-1] + 0.7, -1.5),
        xlim=(max(0.0, low - 0.03), 1 + 0.02 * (1 - low)),
        xlabel=f"accuracy, with 95% intervals that hold for all {len(slices)} slices at once",
    )
    for by, rows in groups:
        axes.annotate(
            by,
            (0, places[rows[0]] - 1),
            (-6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontweight="bold",
            family=class_labels([by], width=36, line=90).fonts,
            parse_math=False,
        )
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower right", fontsize=8, frameon=False, ncols=3)
    figure.supxlabel(legend, fontsize=7, parse_math=False)
    set_title(axes, title)
    return png_bytes(figure)
