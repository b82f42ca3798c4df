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
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.distributed.world import World
from imgrec.errors import ConfigError, ExitCode, OutOfMemory, Stopped
from imgrec.sweeps.folds import cross_validate, folds_override
from imgrec.sweeps.grid import is_sweep
from imgrec.sweeps.run import sweep
from imgrec.terminal import Terminal
from imgrec.training.batch_choice import with_chosen_batch
from imgrec.training.out_of_memory import halved_where_memory_ends, within_memory
from imgrec.training.precision import chosen_precision
from imgrec.training.result import Result
from imgrec.training.run_dir import RunDir, check_continued, join_run_dir

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from imgrec.data.datamodule import DataModule
    from imgrec.training.callbacks.history import History
    from imgrec.training.module import Classifier
    from imgrec.training.step_boundary import StepBoundary

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
        longer = f"epochs={2 * run.epochs}" if run.time is None else f"continue_from={run_dir.path} and another id"
        Terminal(quiet=quiet or world.rank > 0).say(
            f"{run_dir.path} is finished: {result['summary']}. "
            f"To train it longer set {longer}, to train again another id, or id=null."
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
        rank_command = [sys.executable, "-m", "imgrec.train", RANK_ARGUMENT]
        assert run_dir.lock is not None
        lock, timeout_s = run_dir.lock.fileno(), run.trainer.timeout_s
        launched = partial(launch, rank_command, task, ranks, run_dir=run_dir.path, lock=lock, timeout_s=timeout_s)
        with closing(Terminal(quiet=quiet, log=run_dir.path / "log.txt")) as terminal:
            within_memory(launched, terminal.say, line)
        return Result(run_dir.result(), run_dir.path)


def _train_here(
    run: RunConfig, run_dir: RunDir, world: World, command: Sequence[str], given: "Sequence[pl.Callback]", *, quiet: bool
) -> dict[str, Any]:
    """The run, or this rank of it, in this process. OutOfMemory where it is to be started again in another one."""
    log = None if world.rank > 0 else run_dir.path / "log.txt"
    with closing(Terminal(quiet=quiet or world.rank > 0, log=log)) as terminal:
        heartbeat = Heartbeat(world.rank, world.size, run.trainer.timeout_s, terminal.note)
        watchdog = Watchdog(grace_s=run.trainer.grace_s, note=terminal.note, leave=heartbeat.leave, prints=world.rank == 0)
        with signals.handlers_installed(), watchdog, heartbeat:
            try:
                start = partial(_train, run, run_dir, terminal, world, heartbeat, watchdog, command, given)
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


def _train(
    run: RunConfig,
    run_dir: RunDir,
    terminal: Terminal,
    world: World,
    heartbeat: Heartbeat,
    watchdog: Watchdog,
    command: Sequence[str],
    callbacks: "Sequence[pl.Callback]",
) -> dict[str, Any]:
    from imgrec.data.datamodule import DataModule
    from imgrec.models.summary import measure_size
    from imgrec.training import last_screen, more_epochs, summary
    from imgrec.training.callbacks.history import History
    from imgrec.training.callbacks.logger import log_result
    from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata, find_resume_point, read_tested
    from imgrec.training.continued import starting_network
    from imgrec.training.data_check import read_data
    from imgrec.training.event_files import truncate_event_files
    from imgrec.training.final_test import test_network
    from imgrec.training.lightning_compat import compiling, deterministic_errors
    from imgrec.training.module import Classifier
    from imgrec.training.step_boundary import StepBoundary
    from imgrec.training.threads import chosen_threads
    from imgrec.training.trainer import build_trainer, opened_logger, prepare_process, run_callbacks

    prepare_process(run)
    resume = find_resume_point(run_dir.checkpoints, terminal.say, run.epochs)

    heartbeat.doing = "reading the data"
    _stop_if_requested(world)
    data, augment, record, faults = read_data(run, resume, terminal, world)
    run = chosen_precision(run.with_classes(len(data.classes)), resume.precision if resume else None)
    run, choice = with_chosen_batch(run, run_dir.batch, data, terminal, doing=partial(setattr, heartbeat, "doing"))
    _stop_if_requested(world)
    heartbeat.doing = "starting"
    net, teacher, of_weights, continued = starting_network(run, data.classes, resume, record)
    writer = CheckpointWriter(
        checkpoint_metadata(run, data.classes, data.preprocessing(), teacher.metadata() if teacher else None), resume, record
    )
    boundary = StepBoundary(run.trainer, run_dir.last, writer, resume, heartbeat, watchdog, terminal.say)
    with terminal.progress_shown():
        loaders = DataModule(
            run,
            data,
            augment,
            devices=world.size,
            start=resume.start if resume else (0, 0),
            left_out=resume.left_out if resume else set(),
            doing=lambda: heartbeat.doing,
            mark=boundary.timeline.enter,
        )

    size = measure_size(net, channels=run.data.channels, image_size=run.data.image_size, num_classes=len(data.classes))
    classifier = Classifier(run, net, data, augment, loaders.plan, teacher=teacher)
    if resume is None and not of_weights:
        classifier.set_network_from_images(loaders)
    history = History(run_dir.path / "metrics.csv", run.monitor, lost_best=resume is not None and resume.lost_best)
    callbacks = run_callbacks(run, run_dir, terminal, history, boundary, [*continued, *callbacks])
    beginning = more_epochs.checked_beginning(run, net, callbacks, loaders.plan, run_dir, resume, terminal.say)
    threads = chosen_threads(
        run.trainer,
        world,
        step_operations=size.training_operations(loaders.plan.per_device * loaders.plan.accumulate),
        saved=resume.threads(world.rank, world.size) if resume else None,
    )
    with (
        threads,
        opened_logger(run.logger, run_dir.path, rank=world.rank) as logger,
        closing(loaders),
        closing(writer),
        compiling(),
        deterministic_errors(),
    ):
        trainer = build_trainer(
            run.trainer,
            loaders.plan,
            world,
            callbacks=callbacks,
            logger=logger,
            checkpoint_io=writer,
            max_epochs=run.epochs,
            default_root_dir=run_dir.path,
        )
        if world.rank == 0:
            truncate_event_files(run_dir.path / "tensorboard", resume.state["events"] if resume else {})
        device = summary.describe_device(trainer.strategy.root_device, world.size, run.trainer.precision)
        terminal.say(summary.start_screen(run, run_dir.path, device, loaders, size, of_weights, teacher, resume, faults, choice))

        _fit(run, run_dir, trainer, classifier, loaders, history, boundary)
        tested = read_tested(run_dir.checkpoints, writer.weights, terminal.say)
        group = WorkerGroup(world.rank, world.size, heartbeat=heartbeat)
        tests = test_network(run, trainer, classifier, loaders, tested, run_dir.checkpoints, group)
        result = summary.run_result(
            run,
            history,
            tested,
            tests,
            device,
            size,
            command,
            longer=more_epochs.longer_command(beginning, run_dir.path, command, len(history.rows)),
            loaders=loaders,
            faults=faults,
            run_dir=run_dir.path,
        )
        if world.rank == 0:
            last_screen.finish_run(
                run_dir,
                terminal,
                result,
                tests,
                data,
                log=partial(log_result, trainer, tests, data, history, run.to_dict(), run_dir.prediction_files.sheet),
                report=partial(_write_report, run_dir.path) if run.report else None,
            )
        return result


def _write_report(folder: Path) -> None:
    from imgrec.report.write import write_report

    write_report(folder)


def write_sweep_report(folder: Path) -> None:
    """report.html of the folder of a sweep."""
    from imgrec.report.sweep_page import write_sweep_page

    write_sweep_page(folder)


def _stop_if_requested(world: World) -> None:
    """Between the parts of a start. A process of several waits for the first step boundary, where all can agree."""
    if world.size == 1 and (reason := signals.stop_reason()) is not None:
        raise Stopped(f"stopped by {reason} while starting; this start trained no step. Start the same command again.")


def _fit(
    run: RunConfig,
    run_dir: RunDir,
    trainer: "pl.Trainer",
    classifier: "Classifier",
    loaders: "DataModule",
    history: "History",
    boundary: "StepBoundary",
) -> None:
    """Train to the last epoch, unless that is done already."""
    from imgrec.training.checkpoint import restoring
    from imgrec.training.lightning_compat import driver_asked

    resume = boundary.resume
    halved = halved_where_memory_ends(run, loaders.plan, run_dir.batch, began=lambda: boundary.restored)
    with halved, restoring(resume, lambda: boundary.restored), driver_asked(trainer):
        if resume is not None and resume.position.stage == "end":
            history.load_state_dict(resume.load()["callbacks"][history.state_key])
            return
        trainer.fit(classifier, datamodule=loaders, ckpt_path=resume.file if resume else None, weights_only=True)
    boundary.writer.wait()


def _fit_rank(task: Node) -> None:
    fit(run_config(task["run"]), quiet=task["quiet"], command=task["command"])


if __name__ == "__main__":
    if sys.argv[1:2] == [RANK_ARGUMENT]:
        run_rank(sys.argv[2:], _fit_rank)
    else:
        sys.exit(run_command("train", main, sys.argv[1:]))
