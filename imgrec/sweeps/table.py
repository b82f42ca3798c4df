"""What a sweep shows: a line for each job, its last epoch beside the bar, the ranked table."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from imgrec.sweeps.folder import FROM_DEFAULTS, HAVE_RESULT, Job, SweepFolder
from imgrec.sweeps.grid import SweepPlan
from imgrec.terminal import Terminal, duration, percent, percents
from imgrec.training.stored_run import read_rows


class LastEpochColumn(ProgressColumn):
    """The last epoch of the job that is running, from the metrics.csv in its folder."""

    max_refresh = 1.0  # seconds
    folder: str | None = None

    def render(self, task: Task) -> Text:
        rows = read_rows(Path(self.folder) / "metrics.csv") if self.folder else []
        return Text(
            f"epoch {rows[-1]['epoch']}: val/accuracy {percent(float(rows[-1]['val/accuracy']))}"
            if rows and "val/accuracy" in rows[-1]
            else ""
        )


def short_value(value: str) -> str:
    """A figure that Optuna drew, in four digits; other values as they are."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def format_metric(value: float | None, name: str) -> str:
    """A loss with four decimals, a share in percent, '-' for what is not known."""
    return "-" if value is None else f"{value:.4f}" if name.endswith("loss") else percent(value)


def job_overrides(job: Job, plan: SweepPlan) -> str:
    """The overrides of a job but for those that all jobs have."""
    fixed = {argument.key for argument in plan.arguments if not argument.is_swept}
    return " ".join(f"{key}={short_value(value)}" for key, value in job.settings().items() if key not in fixed)


def job_results(job: Job, monitor: str) -> str:
    """'best val/accuracy 97.10%, test accuracy 96.94% (94.6 to 98.3), 0:31 of training', with 'pruned: ' before it where it was."""
    test = "" if job.test_accuracy is None else f", test accuracy {percent(job.test_accuracy)}"
    test += "" if job.test_interval is None else f" {percents(job.test_interval)}"
    pruned = "pruned: " if job.status == "pruned" else ""
    return f"{pruned}best {monitor} {format_metric(job.value, monitor)}{test}, {duration(job.seconds or 0)} of training"


def key_headings(keys: Sequence[str]) -> list[str]:
    """The keys as headings: of many their last parts alone, where these differ, as the whole ones would not fit beside one another."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(keys) > 3 and len(set(last)) == len(keys) else list(keys)


def ranking_table(folder: SweepFolder) -> Table:
    """Rank, the overrides that vary, the best monitored value, test accuracy, time of training, folder."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    varying = folder.varying()
    table.add_column("rank", justify="right")
    for name in key_headings(varying):
        table.add_column(name, overflow="fold")
    for name in (f"best {folder.monitor}", "test accuracy", "time"):
        table.add_column(name, justify="right")
    table.add_column("folder", overflow="fold")
    for rank, job in enumerate(folder.ranked(), 1):
        finished = job.status == "finished"
        settings = [short_value(job.settings().get(key, "")) for key in varying]
        time = duration(job.seconds) if job.seconds is not None else "-"
        folder_name = f"{folder.path.name}/{job.number}"  # sweep.csv has the whole path, which would wrap on 80 columns
        style = "green" if rank == 1 and finished else "red" if job.status == "failed" else None
        table.add_row(
            str(rank) if finished else job.status,
            *settings,
            format_metric(job.value, folder.monitor),
            format_metric(job.test_accuracy, "test accuracy"),
            time,
            folder_name,
            style=style,
        )
    return table


def print_ranking(terminal: Terminal, folder: SweepFolder, *, searched: bool = False, written: str | None = None) -> None:
    """The ranked table, what failed, and what to type next; of a search also what its best figure is worth. written: of the report."""
    best = folder.best()
    terminal.say()
    terminal.say(ranking_table(folder))
    for job in folder.ranked():
        if job.status == "failed":
            terminal.say(f"  job {job.number} failed: {job.error}", style="red")
    terminal.say(f"results in {folder.path}/sweep.csv")
    if written:
        terminal.say(written)
    if searched and best is not None:
        terminal.say(f"best: {best.folder}, {job_results(best, folder.monitor)}", style="bold green")
        terminal.say(best_is_worth(folder, best))
        if said := without_comparison(folder, best):
            terminal.say(said)
    if commands := list(_next_commands(folder, best, searched=searched)):
        terminal.say("\n  ".join(["next:", *commands]))


def _next_commands(folder: SweepFolder, best: Job | None, *, searched: bool) -> Iterator[str]:
    """What can be done with the runs that have a result; nothing where all have failed."""
    if best is not None:
        if searched:
            yield from filter(None, (repeat_command(best), compare_command(folder, best)))
        yield f"imgrec evaluate {shlex.quote(best.folder)}"
    if any(folder.path.glob("*/tensorboard")):
        yield f"tensorboard --logdir {shlex.quote(str(folder.path))}"


def best_is_worth(folder: SweepFolder, best: Job) -> str:
    """Why the best figure of several is too high, and what to expect instead."""
    runs = sum(job.status in HAVE_RESULT for job in folder.jobs)
    if runs == 1:
        return "There is one run, so nothing was chosen yet."
    curse = f"Its {folder.monitor} is the best of {runs} runs by skill and by luck, so a new run has less on average"
    if best.test_accuracy is None:
        return f"{curse}: train it with other seeds, and expect their mean."
    return f"{curse}; the test images took no part in the choice: expect their figure, or the mean of other seeds."


def repeat_command(best: Job) -> str:
    """The command that trains a job again with three other seeds."""
    words = shlex.split((best.result() or {}).get("command") or "")
    folder = words[(at := words.index("--config-dir")) : at + 2] if "--config-dir" in words else []
    settings = best.settings()
    seeds = [seed for seed in ("1", "2", "3", "4") if seed != settings.get("seed")][:3]
    kept = [text for text in best.overrides if text.partition("=")[0] not in ("seed", "id", "resume")]
    return shlex.join(["imgrec", "train", "-m", *folder, f"seed={','.join(seeds)}", *kept])


def compare_command(folder: SweepFolder, best: Job) -> str:
    """Of a search that began with the defaults: the command that says whether its best run is better than they are."""
    if FROM_DEFAULTS not in folder.arguments or without_comparison(folder, best) or best.folder == folder.jobs[0].folder:
        return ""
    return shlex.join(["imgrec", "compare", folder.jobs[0].folder, best.folder])


def without_comparison(folder: SweepFolder, best: Job) -> str:
    """Of a search that began with the defaults: why its best run cannot be compared with them; nothing where it can."""
    first, runs = folder.jobs[0], sum(job.status in HAVE_RESULT for job in folder.jobs)
    if FROM_DEFAULTS not in folder.arguments:
        return ""
    if first.status not in HAVE_RESULT:
        return "The first run, with the defaults, has no result: whether the best one is better than they are is not known."
    if best.folder != first.folder or runs == 1:
        return ""
    return (
        f"None of {runs} runs has a better {folder.monitor} than the first, which has the defaults: there is nothing to compare."
    )
