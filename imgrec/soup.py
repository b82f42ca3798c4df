"""The mean of the weights of runs, as far as it helps on validation: python -m imgrec.soup runs/NAME/1 runs/NAME/2

Tries the runs from the best to the worst, writes the mean of those that help as a run directory of its own, and tests it
once, as a training does at its end.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from imgrec.config.compose import compose_config
from imgrec.config.plain_data import dump_yaml, read_mapping
from imgrec.config.schema import Device, Monitor, MovedData, dotted_types, monitor_mode, parse_settings
from imgrec.config.start_checks import check_gpu, check_moved
from imgrec.distributed.command import run_command
from imgrec.distributed.world import read_world
from imgrec.errors import CheckpointError, ConfigError, ExitCode, plural
from imgrec.files import atomic_write, numbered_paths, resolved
from imgrec.locks import is_locked, lock_folder
from imgrec.terminal import Terminal, percent
from imgrec.training.config_difference import check_same_network
from imgrec.training.run_dir import RunDir
from imgrec.training.stored_run import StoredRun, read_run

if TYPE_CHECKING:
    from rich.table import Table

    from imgrec.training.soup import Soup, Validated, Weights

SAME_START = (
    "Runs average well that start from the same trained weights, such as those of imgrec train -m weights=RUN seed=1,2,3."
)


@dataclass(frozen=True, kw_only=True)
class SoupConfig:
    """The keys of conf/soup.yaml."""

    runs: str | list[str] | None
    out: str | None
    monitor: Monitor | None
    norm_images: int
    data: MovedData
    num_workers: int | Literal["auto"]
    device: Device


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Validate the runs and their means, print the table, write and test the mean where it helps."""
    config = parse_settings(SoupConfig, compose_config("soup", argv, config_dir, types=dotted_types(SoupConfig)))
    if read_world().size > 1:
        raise ConfigError("soup computes in one process. Type imgrec soup without torchrun or srun.")
    check_gpu("device", config.device)
    check_moved(config.data)
    runs = _read_runs(config)
    monitor = _monitor(config, runs)
    sign = -1 if monitor_mode(monitor) == "min" else 1
    runs.sort(key=lambda run: -sign * _stored(run)[monitor])  # the first's config is that of the mean
    for run in runs[1:]:
        check_same_network(runs[0].config, run.config, (str(runs[0].path), str(run.path)))
    _output(config, runs[0].path)  # refuses `out` before the work
    return _make(config, runs, monitor, ["imgrec", "soup", *argv])


def _read_runs(config: SoupConfig) -> list[StoredRun]:
    named = [config.runs] if isinstance(config.runs, str) else config.runs or []
    runs: list[StoredRun] = []
    for path in map(Path, map(os.path.normpath, named)):
        if any(resolved(path) == resolved(run.path) for run in runs):
            raise ConfigError(f"runs={path}: this run is named twice. Remove one.")
        run = read_run(path, "runs", together="soup")
        if "soup" in run.config:  # whose runs would count less than the others, and twice where they are named too
            made_of = run.config["soup"]
            others = f": {shlex.join(map(str, made_of))}" if isinstance(made_of, list) else "."
            raise ConfigError(f"runs={path} is a mean of runs already. Name the runs that it is made of instead{others}")
        if "folds" in run.config:
            raise ConfigError(f"runs={path}: the runs of a cross-validation have other splits each. Name runs of one split.")
        if run.result is None:
            raise ConfigError(f"runs={path} is not finished. Start its command again first, or leave it out.")
        if run.result["best"] is None:
            raise ConfigError(f"runs={path} was not validated. Leave it out.")
        runs.append(run)
    if len(runs) < 2:
        raise ConfigError(
            f"runs={runs[0].path if runs else 'null'}: soup needs two runs or more. Type imgrec soup runs/NAME/1 runs/NAME/2."
        )
    return runs


def _stored(run: StoredRun) -> dict[str, Any]:
    """The figures of the best epoch."""
    assert run.result is not None
    best: dict[str, Any] = run.result["best"]
    return best


def _monitor(config: SoupConfig, runs: Sequence[StoredRun]) -> Monitor:
    monitors: list[Monitor] = [run.config.get("monitor") for run in runs]  # type: ignore[misc]
    if config.monitor is None and len(set(monitors)) > 1:
        raise ConfigError(f"monitor=null: the runs have {', '.join(sorted(set(map(str, monitors))))}. Set monitor={monitors[0]}.")
    monitor = config.monitor or monitors[0]
    for run in runs:
        if monitor not in _stored(run):
            raise ConfigError(f"monitor={monitor}: {run.path} has no such figure. Set monitor=val/accuracy.")
    return monitor


def _output(config: SoupConfig, best: Path) -> Path:
    if config.out is None:
        parent = best.absolute().parent
        folder = best.parent.with_name(f"{parent.name}_soup") if best.parent.name else parent.with_name(f"{parent.name}_soup")
        numbers = numbered_paths(folder)
        if numbers and _was_killed(numbers[-1][1]):
            return numbers[-1][1]
        return folder / str(numbers[-1][0] + 1 if numbers else 1)
    out = Path(config.out)
    if out.exists() and not _was_killed(out):
        raise ConfigError(f"out={out} exists already. Set out=RUNS_DIR/NAME/ID that does not.")
    return out


def _was_killed(folder: Path) -> bool:
    """Whether a soup ended in this directory before its result, which no other process writes now."""
    config = folder / "config.yaml"
    if not folder.is_dir() or (folder / "result.json").exists():
        return False
    if not config.exists():  # it ended even earlier
        return {path.name for path in folder.iterdir()} <= {".lock", "config.yaml.unfinished"} and not is_locked(folder)
    fix = f"Remove {folder} if it is not needed, or set another out."
    return "soup" in read_mapping(config, {}, fix=fix) and not is_locked(folder)


def _make(config: SoupConfig, runs: Sequence[StoredRun], monitor: Monitor, command: list[str]) -> int:
    from imgrec.inference.checkpoint import load_checkpoint, weights_hash
    from imgrec.training.checkpoint import write_checkpoint
    from imgrec.training.last_screen import finish_run
    from imgrec.training.soup import check_alike, greedy_soup
    from imgrec.training.soup_validation import SoupValidation, mean_checkpoint, soup_content

    terminal = Terminal()
    first = load_checkpoint(runs[0].path)
    hashes = [weights_hash(first.content)]
    for run in runs[1:]:
        other = load_checkpoint(run.path)
        check_alike(first, other, (str(runs[0].path), str(run.path)))
        hashes.append(weights_hash(other.content))
    del other
    with terminal.progress_shown():
        validation = SoupValidation(
            first, asdict(config.data), device=config.device, num_workers=config.num_workers, norm_images=config.norm_images
        )
    with closing(validation):
        images = validation.loaders.images_read("val")
        terminal.say(
            f"{len(runs)} runs, the best first by their own {monitor}; {images:,} validation images; {validation.device}"
        )
        if (changes := validation.changes()) is not None:
            terminal.say(f"the images have changed since the training: {changes}", style="yellow")
        with terminal.bar() as bar:
            task = bar.add_task("validations", total=2 * len(runs) - 1, note="")

            def weights(row: int) -> "Weights":
                return _read_weights(runs[row].path, hashes[row])

            def validate(state: "Weights") -> "Validated":
                found = validation.mean(state)
                bar.advance(task)
                return found

            alone = []
            for row in range(len(runs)):
                alone.append(validation.alone(weights(row)).figures[monitor])
                bar.advance(task)
            soup = greedy_soup(alone, weights, validate, monitor)
        terminal.say(_table(soup, runs, monitor))
        best = runs[soup.ingredients[0].row]
        if soup.validated is None:
            terminal.say(
                f"{best.path} alone is better than each mean with it: the soup is that run, and nothing was written.",
                style="yellow",
            )
            if len({run.config.get("weights") for run in runs}) > 1 or runs[0].config.get("weights") is None:
                terminal.say(SAME_START)
            return ExitCode.OK
        terminal.say(_sentence(soup, monitor, images), wrap=True)
        kept = [str(runs[each.row].path) for each in soup.ingredients if each.kept]
        out = _output(config, runs[0].path)  # now, as another soup may have taken the directory meanwhile
        content = soup_content(soup, monitor, [str(run.path) for run in runs], hashes, validation.norm_images)
        place = {"name": out.parent.name, "id": out.name, "runs_dir": str(out.parent.parent)}
        run_dir = RunDir(out, "new")
        with _begun(out, runs[0].config | place | {"soup": kept}):
            tested = mean_checkpoint(first, soup.validated, place, content)
            write_checkpoint(tested.content, run_dir.best)
            tests = validation.test(tested, run_dir.checkpoints)
            seconds = sum(run.result["train_seconds"] for run in runs if run.result is not None)
            result = validation.result(tested, tests, soup, monitor, command, out) | {
                "soup": content,
                "train_seconds": round(seconds, 2),
            }
            report = partial(_write_report, out) if first.run.report else None
            finish_run(run_dir, terminal, result, tests, validation.data, log=lambda: None, report=report)
    terminal.say(f"  imgrec compare {shlex.quote(str(best.path))} {shlex.quote(str(out))}")
    return ExitCode.OK


def _read_weights(run: Path, expected: str) -> "Weights":
    """CheckpointError where they are others than those that were compared, as of a run that is trained on meanwhile."""
    from imgrec.inference.checkpoint import load_checkpoint, weights_hash

    content = load_checkpoint(run).content
    if weights_hash(content) != expected:
        raise CheckpointError(f"{run}: its checkpoint has changed since this command began. Start the same command again.")
    return cast("Weights", content["state_dict"])


def _table(soup: "Soup", runs: Sequence[StoredRun], monitor: Monitor) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    for heading in (f"{monitor} alone", "mean with it", "kept"):
        table.add_column(heading, justify="right")
    for each in soup.ingredients:
        mean = "-" if each.mean is None else _figure(monitor, each.mean)
        table.add_row(Text(str(runs[each.row].path)), _figure(monitor, each.alone), mean, "yes" if each.kept else "no")
    return table


def _figure(monitor: Monitor, value: float) -> str:
    return f"{value:.4f}" if monitor == "val/loss" else percent(value)


def _sentence(soup: "Soup", monitor: Monitor, images: int) -> str:
    """What the mean brings, and what that is worth."""
    assert soup.validated is not None
    kept, best, found = sum(each.kept for each in soup.ingredients), soup.ingredients[0].alone, soup.validated.figures[monitor]
    how = "as good as" if found == best else "better than"
    return (
        f"The mean of {kept} of {len(soup.ingredients)} runs has {monitor} {_figure(monitor, found)}, {how} the best run alone with "
        f"{_figure(monitor, best)}. It was chosen on these {plural(images, 'validation image')}, so that figure is too good by "
        "chance; the test was used for no choice:"
    )


@contextmanager
def _begun(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """A directory that this process has locked, with its config; what a killed soup left there goes. It is removed where the block fails."""
    if _was_killed(folder):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        with lock_folder(folder) or nullcontext():
            atomic_write(folder / "config.yaml", dump_yaml(config))
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_report(folder: Path) -> None:
    from imgrec.report.write import write_report

    write_report(folder)


if __name__ == "__main__":
    sys.exit(run_command("soup", main, sys.argv[1:]))
