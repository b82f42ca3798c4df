"""Train a classifier: python -m imgrec.train model=resnet optim=adam data=mnist

Composes conf/train.yaml, opens the run folder, fits, tests the best checkpoint on the test split and writes result.json.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from imgrec import stopping
from imgrec.config import RunConfig
from imgrec.errors import ImgrecError, Stopped
from imgrec.target import check_signatures

if TYPE_CHECKING:
    from imgrec.heartbeat import Heartbeat
    from imgrec.rundir import RunDir
    from imgrec.screen import Screen
    from imgrec.watchdog import Watchdog


def train(run: RunConfig, *, quiet: bool = False, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, test and record a run; gives the content of its result.json. An unfinished run folder is finished, a finished one is read.

    `imgrec.config.load("train", ["model=vgg", "data=mnist"])` makes a `run`. Raises imgrec.errors.ImgrecError for what the user can mend.
    `command` is for result.json; None: sys.argv.
    """
    from imgrec.heartbeat import Heartbeat
    from imgrec.placement import check, wanted
    from imgrec.processes import connect, world
    from imgrec.rundir import join
    from imgrec.screen import Screen
    from imgrec.watchdog import Watchdog

    command = sys.argv if command is None else command
    here = world()
    check(run, here)
    if here.size > 1:
        connect(here, timeout_s=run.trainer["timeout_s"])
    folder = join(run)
    screen = Screen(quiet=quiet or here.rank > 0)
    if folder.state == "finished":
        result = folder.result()
        screen.say(f"{folder.path} is finished already: {result['summary']}. To start anew set another id, or none.")
        return result
    folder.start(run)
    try:
        if here.started_by == "alone" and (count := wanted(run)) > 1:
            from imgrec.children import supervise

            return supervise(run, folder, count, quiet=quiet, command=command)
        if here.rank == 0:
            screen.log_to(folder.path / "log.txt")
        heartbeat = Heartbeat(here.rank, here.size, run.trainer["timeout_s"], screen.note)
        watchdog = Watchdog(note=screen.note, leave=heartbeat.leave, speaks=here.rank == 0)
        with stopping.listening(), watchdog, heartbeat:
            return _train(run, folder, screen, command, heartbeat, watchdog)
    except ImgrecError:
        folder.forget()
        raise
    finally:
        stopping.forget()
        screen.close()
        folder.close()


def _train(
    run: RunConfig,
    folder: "RunDir",
    screen: "Screen",
    command: Sequence[str],
    heartbeat: "Heartbeat",
    watchdog: "Watchdog",
) -> dict[str, Any]:
    import pytorch_lightning as pl

    from imgrec import story
    from imgrec.callbacks import board, observers
    from imgrec.checkpoint import CheckpointIO, card, latest, read
    from imgrec.gate import Gate
    from imgrec.processes import agreed
    from imgrec.trainer import build_classifier, build_data, build_logger, build_trainer, guards, settings

    check_signatures(run)
    story.quieten()
    pl.seed_everything(run.seed, workers=True, verbose=False)
    watching, history = observers(run, folder, screen)
    writer = CheckpointIO()
    file, resume = agreed(lambda: latest(folder.checkpoints, screen.say)) or (None, None)
    gate = Gate(run, folder, writer, resume, heartbeat, screen.say)
    watchdog.saves = gate
    trainer = build_trainer(
        **settings(run),
        max_epochs=run.epochs,
        default_root_dir=folder.path,
        logger=build_logger(run.logger, folder.path),
        callbacks=[*watching, gate, *guards(run, folder.checkpoints)],
        plugins=[writer],
    )
    heartbeat.doing = "reading the data"
    _stop_if_asked(heartbeat.world_size)
    data, augment, plan = build_data(run, trainer)
    _stop_if_asked(heartbeat.world_size)
    run = run.with_classes(len(data.classes))
    heartbeat.doing = "starting"
    classifier, size, taken = build_classifier(run, data, augment)
    writer.card = card(run, data.classes, data.preprocessing())
    data.gate = gate
    if resume is not None:
        data.start = (resume["place"]["epoch"], resume["place"]["done"])
    if trainer.is_global_zero:
        board.rewind(folder.path / "tensorboard", resume["events"] if resume is not None else {})
    screen.say(story.opening(run, folder, trainer, data, plan, size, taken, file, resume["place"]["step"] if resume else 0))
    if file is not None and resume is not None and resume["place"]["stage"] == "end":
        history.load_state_dict(read(file)["callbacks"][history.state_key])
    else:
        trainer.fit(classifier, datamodule=data, ckpt_path=file, weights_only=True)
        writer.wait()
    return story.ending(run, folder, screen, trainer, classifier, data, history, size, command)


def _stop_if_asked(processes: int) -> None:
    """Between the parts of a start. A process of several waits for the first step, where all can agree."""
    if processes == 1 and (reason := stopping.asked()) is not None:
        raise Stopped(f"stopped by {reason} while starting. Start the same command again to go on.")


class _CallableModule(ModuleType):
    """`imgrec.train(run)` trains, whether or not this module, of the same name, was imported before."""

    def __call__(self, run: RunConfig, *, quiet: bool = False, command: Sequence[str] | None = None) -> dict[str, Any]:
        return train(run, quiet=quiet, command=command)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    from imgrec.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
