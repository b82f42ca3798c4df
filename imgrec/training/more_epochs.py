"""More epochs for a run: whether what it has trained is the beginning of a longer training, and what to type where it is not."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
from torch import nn

from imgrec.config.schema import RunConfig
from imgrec.data.sampler import BatchPlan
from imgrec.distributed.process_group import on_first_rank
from imgrec.errors import ConfigError, DataError
from imgrec.files import numbered_paths
from imgrec.training.resume_point import ResumePoint, find_resume_point
from imgrec.training.run_dir import RunDir, fewer_epochs
from imgrec.training.scheduler import begins_alike
from imgrec.training.summary import command_line, is_train_command


@runtime_checkable
class LengthDependent(Protocol):
    """A callback that looks at the number of epochs."""

    def begins_alike(self, net: nn.Module, *, epochs: int, longer: int, step: int) -> bool:
        """Whether in a training of `longer` epochs it does the same in the first `epochs`, which end with `step`."""


class Beginning:
    """Of a training, what may depend on the number of its epochs: the schedule of the rate, and callbacks."""

    def __init__(self, run: RunConfig, net: nn.Module, callbacks: Iterable[pl.Callback], steps_per_epoch: int) -> None:
        self.run, self.net, self.steps_per_epoch = run, net, steps_per_epoch
        self.callbacks = [callback for callback in callbacks if isinstance(callback, LengthDependent)]

    def obstacle(self, epochs: int, longer: int, *, step: int | None = None) -> str | None:
        """What makes `epochs` epochs no beginning of `longer` ones, up to `step`, by default to their end; None where nothing does."""
        if self.run.time is not None:
            return f"time={self.run.time}"
        lengths = (epochs * self.steps_per_epoch, longer * self.steps_per_epoch)
        step = lengths[0] if step is None else step
        if not begins_alike(self.run.scheduler, steps=step, total_steps=lengths, steps_per_epoch=self.steps_per_epoch):
            return f"the schedule {str(self.run.scheduler['_target_']).rpartition('.')[2]}"
        for callback in self.callbacks:
            if not callback.begins_alike(self.net, epochs=epochs, longer=longer, step=step):
                return f"the callback {type(callback).__name__}"
        return None


def checked_resume_point(run: RunConfig, run_dir: RunDir, say: Callable[[str], None]) -> ResumePoint | None:
    """Where a run is resumed; ConfigError, as `checked_beginning`, for what is known before the images are listed: its end, and the schedule."""
    resume = find_resume_point(run_dir.checkpoints, say, run.epochs)
    if resume is not None and resume.epochs < run.epochs:
        position = resume.position
        if position.stage == "end" or (position.epoch and not position.done):
            beginning = Beginning(run, nn.Module(), [], position.step // max(1, position.epoch))
            _check_more_epochs(beginning, run_dir.path, resume)
    return resume


def checked_beginning(
    run: RunConfig,
    net: nn.Module,
    callbacks: Iterable[pl.Callback],
    plan: BatchPlan,
    run_dir: RunDir,
    resume: ResumePoint | None,
    say: Callable[[str], None],
) -> Beginning:
    """The `Beginning` of a run; ConfigError where it resumes one of fewer epochs that is none. Of a new run says how to train on such a one."""
    beginning = Beginning(run, net, callbacks, plan.steps_per_epoch)
    if resume is not None and resume.epochs < run.epochs:
        _check_more_epochs(beginning, run_dir.path, resume)
        on_first_rank(lambda: run_dir.take_more_epochs(run.epochs))
    if resume is None and (shorter := shorter_run(run, run_dir.path)) is not None:
        say(_shorter_sentence(beginning, *shorter))
    return beginning


def shorter_run(run: RunConfig, path: Path) -> tuple[Path, int] | None:
    """The newest run beside `path` and its epochs, where that is finished and `run` is that one with more epochs."""
    numbered = [entry for entry in numbered_paths(path.parent) if entry[1] != path]
    if run.continue_from is not None or not numbered or not (numbered[-1][1] / "result.json").exists():
        return None
    newest = numbered[-1][1]
    try:
        before = fewer_epochs(run, newest)
    except DataError:  # its config is damaged, and it is another run
        return None
    return None if before is None else (newest, before)


def _check_more_epochs(beginning: Beginning, path: Path, resume: ResumePoint) -> None:
    """ConfigError unless the run in `path`, which has fewer epochs, is the beginning of the one that it is to become."""
    epochs, before, position = beginning.run.epochs, resume.epochs, resume.position
    given = f"epochs={epochs}: {path} is this training with epochs={before}"
    if position.stage == "end":
        raise ConfigError(
            f"{given}, which ended early, after epoch {position.epoch}: more epochs change nothing. "
            f"{_continued(beginning.run, path, epochs - before)}"
        )
    if (obstacle := beginning.obstacle(before, epochs, step=position.step)) is not None:
        raise ConfigError(
            f"{given}, but {obstacle} depends on the number of epochs. {_continued(beginning.run, path, epochs - before)}"
        )


def _continued(run: RunConfig, path: Path, more: int) -> str:
    """'To train it for 30 more, set epochs=30 continue_from=runs/n/1 and another id.'"""
    if run.parent is not None:  # imgrec extend has no continue_from
        return "Set another id to train it anew."
    return f"To train it for {more} more, set epochs={more} {shlex.quote(f'continue_from={path}')} and another id."


def _shorter_sentence(beginning: Beginning, path: Path, before: int) -> str:
    """What to type to train on the finished run in `path`, of `before` epochs, instead of a new one."""
    epochs = beginning.run.epochs
    this = f"{path} is this training with epochs={before}."
    if beginning.obstacle(before, epochs) is None:
        return f"{this} To train that for {epochs - before} more instead, add {shlex.quote(f'id={path.name}')}"
    if beginning.run.parent is not None:
        return this
    longer = shlex.quote(f"continue_from={path}")
    return f"{this} To train that for {epochs - before} more instead, set epochs={epochs - before} {longer}"


def longer_command(beginning: Beginning, path: Path, argv: Sequence[str], done: int) -> str:
    """The command that trains the run in `path`, of `done` epochs, for as many more; argv: that of the run.

    Of a script that called `imgrec.fit` the settings alone: what else it has to say is its own. Folds, and a network with more classes, are trained anew.
    """
    run, keys = beginning.run, [word.partition("=")[0].lstrip("+") for word in argv]
    if "folds" in keys or run.parent is not None:
        settings = {"epochs": str(2 * done)}
    elif done == run.epochs and beginning.obstacle(done, 2 * done) is None:
        settings = {"epochs": str(2 * done), "id": path.name}
    else:
        settings = ({} if run.time else {"epochs": str(done)}) | {"continue_from": str(path)}
    replaced = {"epochs", "id", "resume", *settings}
    given = [f"{key}={value}" for key, value in settings.items()]
    if not is_train_command(argv):
        return shlex.join(given)
    return command_line([*(word for word, key in zip(argv, keys, strict=True) if key not in replaced), *given])
