"""One rank of a run: its data, network, callbacks and trainer are built, it is trained, tested and has a result."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from imgrec.config.schema import RunConfig
from imgrec.data.datamodule import DataModule
from imgrec.distributed import signals
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.watchdog import Watchdog
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.distributed.world import World
from imgrec.errors import Stopped
from imgrec.models.summary import measure_size
from imgrec.terminal import Terminal
from imgrec.training import last_screen, more_epochs, summary
from imgrec.training.batch_choice import with_chosen_batch
from imgrec.training.callbacks.history import History
from imgrec.training.callbacks.logger import log_result
from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata
from imgrec.training.continued import starting_network
from imgrec.training.data_check import read_data
from imgrec.training.event_files import truncate_event_files
from imgrec.training.final_test import test_network
from imgrec.training.lightning_compat import driver_asked
from imgrec.training.module import Classifier
from imgrec.training.out_of_memory import halved_where_memory_ends
from imgrec.training.precision import chosen_precision
from imgrec.training.resume_point import restoring
from imgrec.training.run_dir import RunDir
from imgrec.training.step_boundary import StepBoundary
from imgrec.training.tested_checkpoint import read_tested
from imgrec.training.threads import chosen_threads
from imgrec.training.torch_compat import compiling, deterministic_errors
from imgrec.training.trainer import build_trainer, opened_logger, prepare_process, run_callbacks


def train_rank(
    run: RunConfig,
    run_dir: RunDir,
    terminal: Terminal,
    world: World,
    heartbeat: Heartbeat,
    watchdog: Watchdog,
    command: Sequence[str],
    callbacks: Sequence[pl.Callback],
    write_report: Callable[[Path], object],
) -> dict[str, Any]:
    """The content of result.json. `callbacks` come after those of the config; `write_report` gets the run directory."""
    prepare_process(run)
    resume = more_epochs.checked_resume_point(run, run_dir, terminal.say)

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
    if resume is None and run.weights is None and run.continue_from is None:
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
                report=partial(write_report, run_dir.path) if run.report else None,
            )
        return result


def _stop_if_requested(world: World) -> None:
    """Between the parts of a start. A process of several waits for the first step boundary, where all can agree."""
    if world.size == 1 and (reason := signals.stop_reason()) is not None:
        raise Stopped(f"stopped by {reason} while starting; this start trained no step. Start the same command again.")


def _fit(
    run: RunConfig,
    run_dir: RunDir,
    trainer: pl.Trainer,
    classifier: Classifier,
    loaders: DataModule,
    history: History,
    boundary: StepBoundary,
) -> None:
    """Train to the last epoch, unless that is done already."""
    resume = boundary.resume
    halved = halved_where_memory_ends(run, loaders.plan, run_dir.batch, began=lambda: boundary.restored)
    with halved, restoring(resume, lambda: boundary.restored), driver_asked(trainer):
        if resume is not None and resume.position.stage == "end":
            history.load_state_dict(resume.load()["callbacks"][history.state_key])
            return
        trainer.fit(classifier, datamodule=loaders, ckpt_path=resume.file if resume else None, weights_only=True)
    boundary.writer.wait()
