"""Train a classifier: python -m imgrec.train model=resnet optim=adam data=mnist

Composes conf/train.yaml, opens the run folder, fits, tests the best checkpoint on the test split and writes result.json.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imgrec.config.instantiate import check_signatures
from imgrec.config.schema import RunConfig
from imgrec.distributed import signals
from imgrec.errors import ImgrecError, Stopped

if TYPE_CHECKING:
    from imgrec.distributed.heartbeat import Heartbeat
    from imgrec.distributed.watchdog import SaveStatus
    from imgrec.terminal import Terminal
    from imgrec.training.run_dir import RunDir


def fit(run: RunConfig, *, quiet: bool = False, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, test and record a run; gives the content of its result.json. An unfinished run folder is finished, a finished one is read.

    `imgrec.config.load("train", ["model=vgg", "data=mnist"])` makes a `run`. Raises imgrec.errors.ImgrecError for what the user can mend.
    `command` is for result.json; None: sys.argv.
    """
    from imgrec.distributed.device_checks import check_world, wanted_processes
    from imgrec.distributed.heartbeat import Heartbeat
    from imgrec.distributed.process_group import connect
    from imgrec.distributed.watchdog import SaveStatus, Watchdog
    from imgrec.distributed.world import world
    from imgrec.terminal import Terminal
    from imgrec.training.run_dir import join_run_dir

    command = sys.argv if command is None else command
    here = world()
    check_world(run, here)
    if here.size > 1:
        connect(here, timeout_s=run.trainer["timeout_s"])
    folder = join_run_dir(run)
    screen = Terminal(quiet=quiet or here.rank > 0)
    if folder.state == "finished":
        result = folder.result()
        screen.say(f"{folder.path} is finished already: {result['summary']}. To start anew set another id, or none.")
        return result
    folder.start(run)
    try:
        if here.started_by == "alone" and (count := wanted_processes(run)) > 1:
            from imgrec.distributed.launcher import launch

            return launch(run, folder, count, quiet=quiet, command=command)
        if here.rank == 0:
            screen.log_to(folder.path / "log.txt")
        heartbeat = Heartbeat(here.rank, here.size, run.trainer["timeout_s"], screen.note)
        saves = SaveStatus()
        watchdog = Watchdog(saves, note=screen.note, leave=heartbeat.leave, speaks=here.rank == 0)
        with signals.handlers_installed(), watchdog, heartbeat:
            return _fit(run, folder, screen, command, heartbeat, saves)
    except ImgrecError:
        folder.forget()
        raise
    finally:
        signals.clear_request()
        screen.close()
        folder.close()


def _fit(
    run: RunConfig,
    folder: "RunDir",
    screen: "Terminal",
    command: Sequence[str],
    heartbeat: "Heartbeat",
    saves: "SaveStatus",
) -> dict[str, Any]:
    import pytorch_lightning as pl

    from imgrec.distributed.process_group import on_first_rank
    from imgrec.inference.checkpoint import read_checkpoint
    from imgrec.training import summary
    from imgrec.training.callbacks import observers, tensorboard
    from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata, latest_checkpoint
    from imgrec.training.lightning_compat import silence_known_warnings
    from imgrec.training.step_boundary import StepBoundary
    from imgrec.training.trainer import build_classifier, build_data, build_logger, build_trainer, guards, trainer_arguments

    check_signatures(run)
    silence_known_warnings()
    pl.seed_everything(run.seed, workers=True, verbose=False)
    watching, history = observers(run, folder, screen)
    writer = CheckpointWriter()
    file, resume = on_first_rank(lambda: latest_checkpoint(folder.checkpoints, screen.say)) or (None, None)
    boundary = StepBoundary(
        last=folder.last,
        writer=writer,
        resume=resume,
        heartbeat=heartbeat,
        saves=saves,
        say=screen.say,
        save_every_steps=run.trainer["save_every_steps"],
        save_every_minutes=run.trainer["save_every_minutes"],
        max_minutes=run.trainer["max_minutes"],
    )
    trainer = build_trainer(
        **trainer_arguments(run),
        max_epochs=run.epochs,
        default_root_dir=folder.path,
        logger=build_logger(run.logger, folder.path),
        callbacks=[boundary, *watching, *guards(run, folder.checkpoints)],
        plugins=[writer],
    )
    heartbeat.doing = "reading the data"
    _stop_if_asked(heartbeat.world_size)
    data, augment, plan = build_data(run, trainer)
    _stop_if_asked(heartbeat.world_size)
    run = run.with_classes(len(data.classes))
    heartbeat.doing = "starting"
    classifier, size, taken = build_classifier(run, data, augment)
    writer.metadata = checkpoint_metadata(run, data.classes, data.preprocessing())
    if resume is not None:
        data.start = (resume["position"]["epoch"], resume["position"]["done"])
    if trainer.is_global_zero:
        tensorboard.truncate_event_files(folder.path / "tensorboard", resume["events"] if resume is not None else {})
    screen.say(
        summary.start_screen(run, folder, trainer, data, plan, size, taken, file, resume["position"]["step"] if resume else 0)
    )
    if file is not None and resume is not None and resume["position"]["stage"] == "end":
        history.load_state_dict(read_checkpoint(file)["callbacks"][history.state_key])
    else:
        trainer.fit(classifier, datamodule=data, ckpt_path=file, weights_only=True)
        writer.wait()
    return summary.finish_run(run, folder, screen, trainer, classifier, data, history, size, command)


def _stop_if_asked(processes: int) -> None:
    """Between the parts of a start. A process of several waits for the first step, where all can agree."""
    if processes == 1 and (reason := signals.stop_reason()) is not None:
        raise Stopped(f"stopped by {reason} while starting. Start the same command again to go on.")


if __name__ == "__main__":
    from imgrec.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
