"""The figures of a test in a report: the first one, the classes, and how far the probabilities hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from imgrec.analysis.calibration import calibration_error, reliability_bins
from imgrec.analysis.intervals import share_interval
from imgrec.config.annotations import is_number
from imgrec.errors import plural
from imgrec.html_page import Section, code, scrolling, text
from imgrec.inference.metrics_table import TOTALS
from imgrec.report.charts import CHART_STYLE, reliability_chart
from imgrec.report.facts import Facts
from imgrec.report.measured import OF_TEST, OF_VALIDATION, MeasuredImages
from imgrec.terminal import percent, percents
from imgrec.training.measured_file import change_sentence

_CHOSEN_BY = "The best epoch was chosen by these images, so the figure is too high by a little: a test split would tell."
MEANINGS = {
    "95% interval": "where the figure would be with as many images of the same kind as one likes; in 95 of 100 tests that is right",
    "accuracy": "share of the images whose class was predicted",
    "top-5 accuracy": "the class is one of the five most probable",
    "balanced accuracy": "mean of the classes' recalls, so that a rare class counts as much as a frequent one",
    "recall, precision": "of the images of a class, how many are found; of the images that are called so, how many are right",
    "F1, macro F1": "recall and precision in one figure, low where one of them is low; its mean over the classes",
    "Matthews correlation": "1 is perfect, 0 no better than a guess, however unequal the classes are",
    "AUROC": "how often an image of a class is given a higher probability of it than another image",
    "average precision": "area under the curve of precision over recall; harder than AUROC where a class is rare",
    "log loss, Brier score": "how far the probabilities are off, 0 is best; a wrong answer that was sure costs most",
    "loss": "what the training made smaller",
}
PERCENTAGES = {"accuracy", "top5", "balanced_accuracy", "macro_f1"}  # written as percent
# Sorts a table by the column whose button is pressed, numbers by their data-value.
SORT_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0], place = head.cellIndex;
  const up = head.ariaSort ? head.ariaSort === "descending" : head.className !== "n";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const order = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(b, undefined, {numeric: true}) : a - b;
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))));
});
"""
CLASS_STYLE = """
.share { background: linear-gradient(90deg, rgba(var(--heat), .22) var(--v), transparent var(--v)) no-repeat }
@media screen { .tall { max-height: 44rem; overflow-y: auto; border-bottom: 1px solid var(--line) }
  .tall thead th { position: sticky; top: 0; background: var(--paper) } }
#class-table thead th { white-space: normal; overflow-wrap: normal; vertical-align: bottom }
@media print { #class-table { font-size: 8pt } #class-table :is(th, td) { padding-right: .6rem; min-width: 0 }
  #class-table button::after { content: none } }
"""
FEW_CLASSES = 40  # more scroll in a box of their own, so that what follows is not 60,000 pixels below


def result_section(facts: Facts) -> Section:
    """The first figure, with its interval, and those beside it."""
    result, test = facts.result, facts.test
    if result is None:
        said = (
            f"<p>The run is not finished: {plural(len(facts.run.epochs), 'epoch')} of {text(facts.config.get('epochs'))} ended. "
            f"The same command resumes it, and writes a report at its end.</p>"
        )
        return Section("result", "Result", said)
    changed = change_sentence(facts.folder, result)
    warning = "" if changed is None else f'<div class="box"><b class="bad">A changed file:</b> {text(changed)}</div>'
    if test is None:
        return Section("result", "Result", warning + _validation(facts))
    accuracy = test["accuracy"]
    hits = round(accuracy * test["count"])
    low, high = test["accuracy_interval"]
    first = (
        f'<p class="big"><span data-figure="accuracy" data-value="{accuracy}">{percent(accuracy)}</span> {facts.measured.accuracy}</p>'
        f"<p>With 95% certainty between {100 * low:.1f} and {100 * high:.1f}%: <b>{hits:,}</b> of {test['count']:,} "
        f"images {facts.measured.of} are right.</p>{_how_measured(facts)}"
    )
    return Section("result", "Result", f"{warning}{first}{_totals(test, facts.measured)}")


def _how_measured(facts: Facts) -> str:
    assert facts.test is not None
    if facts.measured is OF_TEST and (there := sum(facts.images.get("test", {}).values())) > facts.test["count"]:
        return f"<p>The test split has {there:,} images; the others were not tested.</p>"
    if facts.measured is OF_VALIDATION:
        return f"<p>{_CHOSEN_BY}</p>"
    return ""


def _validation(facts: Facts) -> str:
    """The figure of a run without a test split."""
    assert facts.result is not None
    share = (facts.result["best"] or facts.result["last"]).get("val/accuracy")
    big = f'<p class="big">{percent(share)} validation accuracy</p>' if is_number(share) else ""
    return f"{big}<p>{text(facts.result['summary'])}.</p><p>{_CHOSEN_BY}</p>"


def _totals(test: Mapping[str, Any], measured: MeasuredImages) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="n" data-figure="{key}" data-value="{test[key]}">{figure_text(key, test[key])}</td>'
        f'<td class="n">{interval_text(key, test.get(interval or ""))}</td></tr>'
        for key, name, interval in TOTALS
        if test.get(key) is not None
    )
    head = f'<thead><tr><th scope="col">figure</th><th scope="col" class="n">{measured.of}</th><th scope="col" class="n">95% interval</th></tr></thead>'
    meanings = "".join(f"<li>{text(name)}: {text(what)}</li>" for name, what in MEANINGS.items())
    table = scrolling(f"<table>{head}<tbody>{rows}</tbody></table>", f"Figures {measured.of}")
    return f"{table}<details><summary>What these figures are</summary><ul>{meanings}</ul></details>"


def figure_text(key: str, value: float) -> str:
    """A figure of `TOTALS`, as it is written."""
    return percent(value) if key in PERCENTAGES else f"{value:.4f}"


def interval_text(key: str, ends: list[float] | None) -> str:
    """Its interval; nothing of a figure without one."""
    if ends is None:
        return ""
    return "{:.1f} to {:.1f}%".format(*(100 * end for end in ends)) if key in PERCENTAGES else "{:.4f} to {:.4f}".format(*ends)


def class_section(facts: Facts) -> Section:
    """Every class with its figures; a column sorts the table."""
    if facts.test is None:
        return Section("classes", "Classes", missing_test(facts))
    counts = facts.images.get("train", {})
    headings = [
        ("class", ""),
        *[("in train", "n")] * bool(counts),
        (facts.measured.column, "n"),
        ("recall", "n"),
        ("its 95% interval", "n"),
    ]
    headings += [("precision", "n"), ("F1", "n"), ("AUROC", "n"), ("average precision", "n")]
    head = "".join(
        f'<th scope="col"{f" class={kind}" * bool(kind)}><button type="button">{name}</button></th>' for name, kind in headings
    )
    rows = sorted(facts.test["per_class"], key=lambda row: (not row["support"], row["f1"], row["recall"]))
    body = "".join(f"<tr>{''.join(_class_cells(row, counts))}</tr>" for row in rows)
    said = f"<p>{plural(len(rows), 'class', 'es')}, the lowest F1 first. A heading sorts the table.</p>"
    table = f'<table id="class-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    table = scrolling(table, "Classes", "wide tall" if len(rows) > FEW_CLASSES else "wide")
    return Section("classes", "Classes", said + table, SORT_SCRIPT, CLASS_STYLE)


def _class_cells(row: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    yield f'<th scope="row">{text(row["name"])}</th>'
    if counts:
        yield f"<td class=n data-value={counts.get(row['name'], 0)}>{counts.get(row['name'], 0):,}</td>"
    yield f"<td class=n data-value={row['support']}>{row['support']:,}</td>"
    if row["support"]:
        low, high = row["recall_interval"]
        share = f'class="n share" style=--v:{100 * row["recall"]:.0f}%'
        yield f"<td {share} data-value={row['recall']:.6g}>{percent(row['recall'])}</td>"
        yield f"<td class=n data-value={low:.4g}>{100 * low:.1f} to {100 * high:.1f}</td>"
    else:
        yield "<td class=n data-value=-1>-</td><td class=n data-value=-1>-</td>"
    for key in ("precision", "f1", "auroc", "average_precision"):
        value = row.get(key) if row["support"] or key == "precision" else None
        shown = "-" if value is None else percent(value) if key in ("precision", "f1") else f"{value:.4f}"
        yield f"<td class=n data-value={-1 if value is None else format(value, '.6g')}>{shown}</td>"


def reliability_section(facts: Facts) -> Section:
    """Whether an image of which the network is 80% sure is right in 80% of the cases."""
    found = facts.predictions
    title = "How far the probabilities hold"
    if found is None or found.probability is None or not len(found.true):
        return Section("reliability", title, missing_test(facts))
    right = found.true == found.predicted
    bins = reliability_bins(found.probability, right, binning="equal_width")
    error = calibration_error(found.probability, right, binning="equal_width")
    whole = share_interval(np.rint(bins.accuracy * bins.images), bins.images).tolist()
    sure, share = float(found.probability.mean(dtype=np.float64)), float(right.mean())
    said = (
        f'<p>Calibration error (ECE) <b data-figure="ece" data-value="{error.value}">{error.value:.1%}</b> {percents(error[1:])}: on average '
        f"the network is {sure:.1%} sure, and {share:.1%} are right. {_temperature(facts)}</p>"
    )
    note = (
        '<p class="soft">Points below the diagonal: answers that were too sure. 15 bins of equal width, with 95% intervals.</p>'
    )
    return Section("reliability", title, f"{said}{reliability_chart(bins, whole)}{note}", style=CHART_STYLE)


def _temperature(facts: Facts) -> str:
    node = (facts.result or {}).get("calibration")
    if node and node.get("reason"):
        return text(f"No temperature was fitted: {node['reason']}.")
    if not node or node.get("temperature") is None:
        return ""
    before = node["test"]["before"]["equal_width"].get("calibration_error") if node.get("test") else None
    without = f"; without it the error is {before:.1%}" if before is not None else ""
    return f"The probabilities are those with temperature {node['temperature']:.2f}, fitted on the validation images{without}."


def validation_commands(run: Path) -> tuple[str, str]:
    """What a run without a test split takes for a report of its validation images."""
    folder = quote(str(run))
    return f"imgrec evaluate {folder} split=val", f"imgrec report {folder}"


def missing_test(facts: Facts) -> str:
    """Why a section that needs a test, or its table, has nothing to show."""
    if facts.result is None:
        return "<p>The run is not finished: it has no test yet.</p>"
    if facts.test is None:
        evaluate, report = (code(command) for command in validation_commands(facts.folder))
        return f"<p>The run has no test split. Type <code>{evaluate}</code>, then <code>{report}</code>: it is answered by validation.</p>"
    return (
        f"<p>{text(facts.folder / 'predictions.parquet')} is missing, or has no probabilities: it was removed, or an older version wrote it. "
        f"<code>imgrec evaluate {code(facts.quoted)}</code> shows the same figures.</p>"
    )
