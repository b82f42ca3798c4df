"""report.html in the folder of a sweep: its best run and what that is worth, how it was found, which keys mattered, all runs."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from imgrec.config.schema import monitor_mode
from imgrec.errors import plural
from imgrec.files import atomic_write, begins_with, check_output
from imgrec.html_page import Section, code, page_start, render, scrolling, text
from imgrec.report.charts import CHART_STYLE, share_bars
from imgrec.report.figures import SORT_SCRIPT
from imgrec.report.sweep_charts import MOST_AXES, SWEEP_STYLE, SweepRun, history_chart, parallel_chart
from imgrec.sweeps.folder import FROM_DEFAULTS, HAVE_RESULT, Job, SweepFolder, read_sweep
from imgrec.sweeps.importance import CHANCE, LEAST_BEST, LEAST_RUNS, importances, searched
from imgrec.sweeps.table import (
    best_is_worth,
    compare_command,
    format_metric,
    key_headings,
    repeat_command,
    short_value,
    without_comparison,
)
from imgrec.terminal import duration, percents


def write_sweep_page(folder: Path, *, overwrite: bool = False) -> Path:
    """The page of a sweep, also of one that is not finished. overwrite: also in the place of a file that imgrec did not write.

    DataError for a sweep.json that was cut or changed, ConfigError for a report.html of somebody else.
    """
    sweep, page = read_sweep(folder), folder / "report.html"
    check_output("runs", page, (".html",), ours=begins_with(page_start("report").encode()), overwrite=overwrite)
    atomic_write(page, render("report", f"{folder.parent.name}/{folder.name}: report", list(_sections(sweep))))
    return page


def _sections(sweep: SweepFolder) -> Iterator[Section]:
    runs = _runs(sweep)
    yield best_section(sweep)
    if any(not run.pruned for run in runs):
        low = monitor_mode(sweep.monitor) == "min"
        note = "<p class=soft>A triangle is a run that is far worse than the others, outside the chart.</p>"
        yield Section(
            "history", "Best so far", history_chart(runs, sweep.monitor, low_is_good=low) + note, style=CHART_STYLE + SWEEP_STYLE
        )
        if searched(sweep):
            yield importance_section(sweep)
            yield parallel_section(sweep, runs)
    yield runs_section(sweep)
    yield space_section(sweep)


def _runs(sweep: SweepFolder) -> list[SweepRun]:
    """The jobs with a figure, in the order they were proposed."""
    return [
        SweepRun(job.number, job.settings(), job.value, job.status == "pruned")
        for job in sorted(sweep.jobs, key=lambda job: job.number)
        if job.status in HAVE_RESULT and job.value is not None
    ]


def best_section(sweep: SweepFolder) -> Section:
    """The best run, what its figure is worth, and the commands that test it."""
    best, counts = sweep.best(), [f"{sum(job.status == status for job in sweep.jobs)} {status}" for status in _statuses(sweep)]
    said = f"<p>{plural(len(sweep.jobs), 'run')}: {', '.join(counts)}.</p>"
    if best is None:
        return Section("best", "Best run", f"<p>No run is finished yet: the same command resumes the search.</p>{said}")
    first = f'<p class="big"><span data-figure="best" data-value="{best.value}">{format_metric(best.value, sweep.monitor)}</span> {text(sweep.monitor)} of run {best.number}</p>'
    if best.test_accuracy is not None:
        interval = "" if best.test_interval is None else f" {percents(best.test_interval)}"
        first += (
            f"<p>Test accuracy {format_metric(best.test_accuracy, 'accuracy')}{interval}. {text(best_is_worth(sweep, best))}</p>"
        )
    else:
        first += f"<p>{text(best_is_worth(sweep, best))}</p>"
    start = min(sweep.jobs, key=lambda job: job.number)
    if FROM_DEFAULTS in sweep.arguments and start.value is not None:
        said += f"<p>Run 0 has the defaults: {text(sweep.monitor)} {format_metric(start.value, sweep.monitor)}.</p>"
    if reason := without_comparison(sweep, best):
        said += f"<p>{text(reason)}</p>"
    repeat, compare = code(repeat_command(best)), code(compare_command(sweep, best))
    asked = "The same with other seeds" + ", and whether it is better than the defaults" * bool(compare)
    commands = f"{repeat}\n{compare}".strip()
    return Section("best", "Best run", f"{first}{said}<p>{asked}:</p><pre>{commands}</pre>")


def _statuses(sweep: SweepFolder) -> list[str]:
    return list(dict.fromkeys(job.status for job in sweep.ranked()))


def importance_section(sweep: SweepFolder) -> Section:
    """A bar for each key, and whether it is more than chance."""
    title = "Which keys mattered"
    if find_spec("optuna") is None:
        return Section("importance", title, '<p>It takes Optuna: <code>pip install "imgrec[optuna]"</code>.</p>')
    found = importances(sweep)
    if not found:
        return Section("importance", title, f"<p>{LEAST_RUNS} runs with a result are needed.</p>")
    bars = share_bars([(row.key, row.share, f"{row.share:.0%}{' ?' * (row.p > CHANCE)}") for row in found])
    above = [row.key for row in found if row.p <= CHANCE]
    said = (
        f"Good runs have other values of {', '.join(map(text, above))} than all runs, by more than chance."
        if above
        else "No key differs between good runs and all runs by more than chance."
    )
    note = (
        f'<p class="soft">PED-ANOVA: how far the values of the best tenth of the runs, {LEAST_BEST} at least, differ from those of all, '
        f"as a share of the sum over the keys. ?: may be chance, as shuffled results give some key as much in more than {CHANCE:.0%} of the cases. "
        "A search tries again what was good, so a key may look important for another that was varied with it; one whose range is narrow does not.</p>"
    )
    return Section("importance", title, f"<p>{said}</p>{bars}{note}", style=CHART_STYLE)


def parallel_section(sweep: SweepFolder, runs: list[SweepRun]) -> Section:
    """All runs over parallel axes."""
    keys = searched(sweep)
    chart = parallel_chart(runs, keys, sweep.monitor, low_is_good=monitor_mode(sweep.monitor) == "min")
    left = f" The first {MOST_AXES} of {len(keys)} keys are drawn." if len(keys) > MOST_AXES else ""
    note = (
        '<p class="soft">Each line is a run: thick the best, blue the upper quarter of the finished ones, grey the others, dashed those '
        f"that were pruned. The table below has the same figures.{left}</p>"
    )
    return Section(
        "parallel", "Values of all runs", scrolling(chart, "Values of all runs") + note, style=CHART_STYLE + SWEEP_STYLE
    )


def runs_section(sweep: SweepFolder) -> Section:
    """Every run with its values and figures, the best first; a heading sorts the table."""
    keys = sweep.varying()
    names = [("run", "n"), ("status", "")]
    names += [(name, "n") for name in (sweep.monitor, "test accuracy", "time", *key_headings(keys))]
    head = "".join(
        f'<th scope="col"{f" class={kind}" * bool(kind)}><button type="button">{text(name)}</button></th>' for name, kind in names
    )
    body = "".join(f"<tr>{''.join(_cells(sweep, job, keys))}</tr>" for job in sweep.ranked())
    said = "<p>The best first. A number leads to the run's report. To choose by the test accuracy would spoil it.</p>"
    table = f'<table id="run-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return Section("runs", "Runs", said + scrolling(table, "Runs"), SORT_SCRIPT, "#run-table tbody th { min-width: 3rem }")


def _cells(sweep: SweepFolder, job: Job, keys: list[str]) -> Iterator[str]:
    folder = Path(job.folder)
    name = str(job.number)
    if (folder / "report.html").exists():
        name = f'<a href="{folder.name}/report.html" aria-label="report of run {job.number}">{job.number}</a>'
    yield f'<th scope="row" class="n" data-value="{job.number}">{name}</th>'
    yield f"<td>{text(job.status)}{f': {text(job.error)}' if job.error else ''}</td>"
    for value, shown in (
        (job.value, format_metric(job.value, sweep.monitor)),
        (job.test_accuracy, format_metric(job.test_accuracy, "accuracy")),
        (job.seconds, "-" if job.seconds is None else duration(job.seconds)),
    ):
        yield f'<td class="n" data-value="{-1 if value is None else value}">{shown}</td>'
    settings = job.settings()
    for key in keys:
        yield f'<td class="n" data-value="{text(settings.get(key, ""))}">{text(short_value(settings.get(key, "")))}</td>'


def space_section(sweep: SweepFolder) -> Section:
    """The arguments, from which the same search can be started."""
    rows = "".join(
        f'<tr><th scope="row">{text(key)}</th><td>{text(values)}</td></tr>'
        for key, found, values in (argument.partition("=") for argument in sweep.arguments)
        if found
    )
    head = '<thead><tr><th scope="col">key</th><th scope="col">values</th></tr></thead>'
    table = scrolling(f"<table>{head}<tbody>{rows}</tbody></table>", "What was searched")
    return Section("space", "What was searched", table)
