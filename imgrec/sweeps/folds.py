"""Cross-validation: python -m imgrec.train folds=5 model=resnet data=digits

The training images are cut into folds by class (and by group, where the data has some). For each of them a run of its own, in
RUNS_DIR/NAME/folds_1/1 and so on, is trained on the others and validated on it. Their predictions of all training images, each by
the run that was not trained on it, stand in the folder above. The same command again resumes what was stopped.
"""

import gc
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from imgrec.config.annotations import whole_number
from imgrec.config.batch_checks import check_same_batch
from imgrec.config.instantiate import check_signature
from imgrec.config.load import load_config
from imgrec.config.plain_data import dump_yaml, read_mapping
from imgrec.config.schema import Node, RunConfig
from imgrec.config.start_checks import check_start
from imgrec.distributed import signals
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, DataError, ExitCode, Stopped
from imgrec.files import atomic_write, numbered_paths
from imgrec.paths import suspects_command
from imgrec.sweeps.folder import Job
from imgrec.sweeps.grid import is_sweep
from imgrec.sweeps.job import Fit
from imgrec.sweeps.table import LastEpochColumn, job_results
from imgrec.terminal import Terminal, duration, percent, percents
from imgrec.training.config_difference import differing_values
from imgrec.training.run_dir import RunDir

FOLDS = "folds="


def folds_override(argv: Sequence[str]) -> str | None:
    """folds=5 of a command line; None where it has none."""
    return next((text for text in reversed(argv) if text.startswith(FOLDS)), None)


def cross_validate(argv: Sequence[str], override: str, config_dir: str | None, fit: Fit) -> int:
    """Run the folds of `imgrec train ARGV` that are not finished, write what they say together, and print the table.

    Raises ConfigError and DataError, before the first of them, for what can be checked by then.
    """
    count = whole_number(override.removeprefix(FOLDS))
    if count is None or count < 2:
        raise ConfigError(f"{override}: expected 2 or more. Type folds=5, or leave it out for a single run.")
    if is_sweep(argv):
        raise ConfigError(f"{override}: a sweep trains single runs. Leave -m or {override} out.")
    if (world := read_world()).size > 1:
        raise ConfigError(
            f"{override} under {world.started_by}: each fold starts its own processes. Type imgrec train {override} ... without it."
        )
    run = load_config("train", [text for text in argv if not text.startswith(FOLDS)], config_dir)
    check_same_batch([run.batch_size], "the folds")
    check_start(run)
    path, terminal = choose_folds_folder(run, count), Terminal()
    if (path / "result.json").exists():
        _print(terminal, path, RunDir(path, "finished").result())
        return ExitCode.OK
    runs = [_fold_run(run, path, number, count) for number in range(1, count + 1)]
    _check_data(runs[0], path / "1", terminal)
    path.mkdir(parents=True, exist_ok=True)
    atomic_write(path / "config.yaml", dump_yaml(_stored(run, count)))
    terminal.say(f"{count} folds in {path}", style="bold")
    _train(runs, path, terminal, fit)
    with terminal.progress_shown():
        result = _pool(path, runs)
    atomic_write(path / "result.json", json.dumps(result, indent=1))
    _print(terminal, path, result)
    return ExitCode.OK


def choose_folds_folder(run: RunConfig, count: int) -> Path:
    """RUNS_DIR/NAME/folds_N of the newest cross-validation of this config, finished or not, or of the next number; with `id` that one.

    ConfigError where that holds something else.
    """
    parent, wanted = Path(run.runs_dir) / run.name, _stored(run, count)
    fix = "Set another id, or remove it if its runs are not needed."

    def differing(path: Path) -> list[str]:
        return list(differing_values([wanted, read_mapping(path / "config.yaml", {}, fix=fix)]))

    if run.id is not None:
        path = parent / run.id
        if path.exists() and not (path / "config.yaml").exists():
            raise ConfigError(f"id={run.id}: {path} holds something else. Set another id.")
        if path.exists() and (not run.resume or (keys := differing(path))):
            what = "holds folds already" if not run.resume else f"holds a run of another config ({', '.join(keys[:3])})"
            raise ConfigError(f"id={run.id}: {path} {what}. Set another id.")
        return path
    numbers = [number for number, _ in numbered_paths(parent, "folds_")]
    for number in reversed(numbers if run.resume else []):
        path = parent / f"folds_{number}"
        if (path / "config.yaml").exists() and not differing(path):
            return path
    return parent / f"folds_{max(numbers, default=0) + 1}"


def _stored(run: RunConfig, count: int) -> Node:
    return run.to_dict() | {"folds": count}


def _fold_run(run: RunConfig, path: Path, number: int, count: int) -> RunConfig:
    data = replace(run.data, own=run.data.own | {"fold": [number, count]})
    return replace(run, runs_dir=str(path.parent), name=path.name, id=str(number), data=data)


def _check_data(run: RunConfig, folder: Path, terminal: Terminal) -> None:
    """What the folds cannot be cut from is refused before the first is trained, and what differs from the data of the first, in `folder`."""
    from imgrec.data.datamodule import build_data
    from imgrec.data.split_record import find_changes
    from imgrec.inference.checkpoint import load_checkpoint

    check_signature("data", run.data.to_node())
    data, _ = build_data(run)
    assert len(data.held_out)
    then = load_checkpoint(folder).record() if (folder / "result.json").exists() else None
    if then is not None and (changes := find_changes(then, data.following(then).record())).counts:
        raise DataError(
            f"the images have changed since fold 1 was trained: {changes}. "
            "Restore them to resume, or set resume=false to train all folds anew."
        )
    if given := data.given_validation:
        terminal.say(
            f"the {len(given):,} images of the data's own validation split are left out: each fold is one", style="yellow"
        )


def _train(runs: Sequence[RunConfig], path: Path, terminal: Terminal, fit: Fit) -> None:
    epoch = LastEpochColumn()
    with terminal.bar() as bar:
        bar.columns = (*bar.columns, epoch)
        task = bar.add_task("folds", total=len(runs), note="")
        for number, run in enumerate(runs, 1):
            if (reason := signals.stop_reason()) is not None:
                raise Stopped(f"stopped by {reason} between two folds. Start the same command again to resume.")
            epoch.folder = str(path / str(number))
            result = fit(run, quiet=True, command=sys.argv)
            gc.collect()  # trainer and network refer to each other: free their memory on the device
            job = Job(number, [], str(path / str(number)))
            job.finish(result, run.monitor)
            terminal.say(f"fold {number}/{len(runs)}  {job_results(job, run.monitor)}; log in {job.folder}/log.txt")
            bar.advance(task)


def _pool(path: Path, runs: Sequence[RunConfig]) -> Node:
    """Writes the tables of all training images, and gives the content of result.json."""
    from imgrec.inference.folds import fold_result, pool_folds

    folders = [path / str(number) for number in range(1, len(runs) + 1)]
    report, folds = pool_folds(folders, RunDir(path, "finished").prediction_files)
    results = [RunDir(folder, "finished").result() for folder in folders]
    rows = [fold_result(fold, result) for fold, result in zip(folds, results, strict=True)]
    return {
        "summary": f"pooled accuracy {percent(report.accuracy)} {percents(report.accuracy_interval)}, "
        f"macro F1 {percent(report.macro_f1)} {percents(report.macro_f1_interval)} on {report.count:,} images of {len(runs)} folds",
        "status": "finished",
        "name": path.name,
        "best": None,
        "last": {},
        "test": report.to_dict(),  # of the pooled predictions
        "folds": rows,
        "train_seconds": round(sum(result["train_seconds"] for result in results), 2),
    }


def _print(terminal: Terminal, path: Path, result: Node) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("fold", "images", "accuracy (95%)", "macro F1", "test accuracy (95%)", "time"):
        table.add_column(name, justify="right")
    for number, row in enumerate(result["folds"], 1):
        table.add_row(
            str(number),
            f"{row['count']:,}",
            _accuracy(row),
            percent(row["macro_f1"]),
            _accuracy(row["test"]),
            duration(row["seconds"]),
        )
    pooled = result["test"]
    table.add_row(
        "pooled",
        f"{pooled['count']:,}",
        _accuracy(pooled),
        percent(pooled["macro_f1"]),
        "",
        duration(result["train_seconds"]),
        style="green",
    )
    terminal.say()
    terminal.say(table)
    terminal.say()
    terminal.say(f"pooled: each of {pooled['count']:,} images by the network that was not trained on it; the test is in no fold")
    own = [row["accuracy"] for row in result["folds"]]
    tested = [row["test"]["accuracy"] for row in result["folds"] if row["test"]]
    test = f"; test accuracy {_mean(tested)}" if tested else ""
    terminal.say(f"mean and standard deviation of the folds: accuracy {_mean(own)}{test}")
    terminal.say(f"results in {path}; every prediction in {path}/predictions.parquet")
    terminal.say("next:")
    terminal.say(f"  {suspects_command(path)}")
    terminal.say(f"  imgrec evaluate {shlex.quote(f'{path}/1')}")


def _accuracy(row: Node | None) -> str:
    return f"{percent(row['accuracy'])} {percents(row['accuracy_interval'])}" if row else "-"


def _mean(values: Sequence[float]) -> str:
    """'97.01% ± 0.62'"""
    return f"{percent(fmean(values))} ± {100 * stdev(values):.2f}"
