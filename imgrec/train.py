"""Train a classifier: python -m imgrec.train model=resnet optim=adam data=mnist

Composes conf/train.yaml, opens the run directory, trains, tests the best checkpoint on the test split and writes
result.json.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imgrec.config.instantiate import find_allowed_packages, python_command
from imgrec.config.load import load_config
from imgrec.config.python_settings import Settings
from imgrec.config.schema import Node, RunConfig, run_config
from imgrec.config.start_checks import check_start
from imgrec.distributed import signals
from imgrec.distributed.command import run_command
from imgrec.distributed.device_checks import trains_on_cuda, wanted_processes
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.launcher import launch, run_rank
from imgrec.distributed.process_group import connected_world, on_first_rank
from imgrec.distributed.watchdog import Watchdog
from imgrec.distributed.world import World
from imgrec.errors import ConfigError, ExitCode, OutOfMemory, Stopped
from imgrec.sweeps.folds import cross_validate, folds_override
from imgrec.sweeps.grid import is_sweep
from imgrec.sweeps.run import sweep
from imgrec.terminal import Terminal
from imgrec.training.out_of_memory import within_memory
from imgrec.training.result import Result
from imgrec.training.run_dir import RunDir, check_continued, join_run_dir

if TYPE_CHECKING:
    import pytorch_lightning as pl

RANK_ARGUMENT = "--rank"  # of the processes that the launcher starts


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """A training, with -m many of them, a sweep, or with folds=K one for each fold."""
    signals.install_handlers()  # before the seconds that importing torch takes
    if (override := folds_override(argv)) is not None:
        return cross_validate(argv, override, config_dir, fit)
    if is_sweep(argv):
        return sweep(argv, config_dir, fit, write_sweep_report)
    fit(load_config("train", argv, config_dir))
    return ExitCode.OK


def fit(
    settings: RunConfig | Settings = None,
    /,
    *,
    callbacks: "str | Mapping[str, Any] | pl.Callback | Sequence[pl.Callback] | None" = None,
    quiet: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    command: Sequence[str] | None = None,
    **keys: Any,
) -> Result:
    """Train and test a run, or resume an unfinished one; returns the content of its result.json, also of a finished one.

    fit(data="mnist", epochs=3, optim={"lr": 0.1}), fit(["data=mnist", "optim.lr=0.1"]) and fit(run) with a `run` of
    `imgrec.config.load` are the same. callbacks: Lightning's, to be called after those of the config; a text or a
    dictionary is the config group. `command` is for result.json; None: sys.argv. Raises ImgrecError for a user's mistake.
    """
    if isinstance(callbacks, str | Mapping):
        keys, callbacks = keys | {"callbacks": callbacks}, None
    listed = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    given = [] if callbacks is None else cast("list[pl.Callback]", list(listed))  # check_callbacks looks at what they are
    if not isinstance(settings, RunConfig):
        run = load_config("train", settings, config_dir, **keys)
    elif keys or config_dir is not None:
        key = next(iter(keys), "config_dir")
        raise ConfigError(f"{key}: a RunConfig has all keys already. Type imgrec.config.load('train', ..., {key}=VALUE).")
    else:
        run = settings
    if given:
        from imgrec.training.trainer import check_callbacks

        check_callbacks(given)
    world = connected_world(run.trainer)
    run_dir = join_run_dir(run)
    for error in run_dir.damaged:
        Terminal(quiet=quiet or world.rank > 0).say(f"passed over: {error}", style="yellow")
    if run_dir.state == "finished":
        result = run_dir.result()
        Terminal(quiet=quiet or world.rank > 0).say(
            f"{run_dir.path} is finished: {result['summary']}. "
            f"To train it longer set {_longer(run, run_dir.path)}, to train again another id, or id=null."
        )
        return Result(result, run_dir.path)
    on_first_rank(lambda: check_start(run))
    if run.continue_from is not None and run_dir.state == "new":
        on_first_rank(lambda: check_continued(run))
    command = list(sys.argv if command is None else command)
    with run_dir.opened(run), signals.request_cleared():
        ranks = wanted_processes(run.trainer) if world.started_by == "alone" else 1
        if ranks > 1 and given:
            raise ConfigError(
                f"callbacks=[{type(given[0]).__name__}]: objects stay in this process, and the run starts {ranks} others. "
                "Set trainer.devices=1, or name their classes in a yaml."
            )
        line = None
        if ranks == 1:
            try:
                return Result(_train_here(run, run_dir, world, command, given, quiet=quiet), run_dir.path)
            except OutOfMemory as error:
                if given or world.size > 1 or world.started_by == "imgrec":  # whoever started it starts it again
                    raise
                line = str(error)
        task = {"run": run.to_dict(), "quiet": quiet, "command": command}
        rank_command = python_command("-m", "imgrec.train", RANK_ARGUMENT)
        assert run_dir.lock is not None
        lock, timeout_s = run_dir.lock.fileno(), run.trainer.timeout_s
        launched = partial(launch, rank_command, task, ranks, run_dir=run_dir.path, lock=lock, timeout_s=timeout_s)
        with closing(Terminal(quiet=quiet, log=run_dir.path / "log.txt")) as terminal:
            within_memory(launched, terminal.say, line)
        return Result(run_dir.result(), run_dir.path)


def _longer(run: RunConfig, path: Path) -> str:
    """The settings that train a finished run longer."""
    if run.parent is not None:  # imgrec extend has no continue_from
        return f"{f'epochs={2 * run.epochs}' if run.time is None else 'a longer time'} and another id"
    return f"epochs={2 * run.epochs}" if run.time is None else f"continue_from={path} and another id"


def _train_here(
    run: RunConfig, run_dir: RunDir, world: World, command: Sequence[str], given: "Sequence[pl.Callback]", *, quiet: bool
) -> dict[str, Any]:
    """The run, or this rank of it, in this process. OutOfMemory where it is to be started again in another one."""

    def start() -> dict[str, Any]:
        from imgrec.training.rank import train_rank

        return train_rank(run, run_dir, terminal, world, heartbeat, watchdog, command, given, _write_report)

    log = None if world.rank > 0 else run_dir.path / "log.txt"
    with closing(Terminal(quiet=quiet or world.rank > 0, log=log)) as terminal:
        heartbeat = Heartbeat(world.rank, world.size, run.trainer.timeout_s, terminal.note)
        watchdog = Watchdog(grace_s=run.trainer.grace_s, note=terminal.note, leave=heartbeat.leave, prints=world.rank == 0)
        with signals.handlers_installed(), watchdog, heartbeat:
            try:
                if world.size == 1 and trains_on_cuda(run.trainer):  # whose memory torch has back at once
                    return within_memory(start, terminal.say)
                return start()
            except OutOfMemory as error:
                if given:
                    raise OutOfMemory(f"{error} Call fit again, in a new process.") from error
                raise
            except Stopped as stopped:
                terminal.note(str(stopped))  # the terminal may be closed
                raise


def _write_report(folder: Path) -> None:
    from imgrec.report.write import write_report

    write_report(folder)


def write_sweep_report(folder: Path) -> None:
    """report.html of the folder of a sweep."""
    from imgrec.report.sweep_page import write_sweep_page

    write_sweep_page(folder)


def _fit_rank(task: Node) -> None:
    fit(run_config(task["run"]), quiet=task["quiet"], command=task["command"])


if __name__ == "__main__":
    if sys.argv[1:2] == [RANK_ARGUMENT]:
        find_allowed_packages()
        run_rank(sys.argv[2:], _fit_rank)
    else:
        sys.exit(run_command("train", main, sys.argv[1:]))
