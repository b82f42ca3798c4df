"""Between two steps: where all processes of a run agree to go on, to save or to stop.

Nothing is decided anywhere else. Signals, the time budget and the clock of the saves only set flags; before each optimizer step and each batch of
validation the processes reduce them, so all save and stop at the same step, and no collective ever runs inside a signal handler.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import distributed

from imgrec.distributed import signals
from imgrec.errors import CheckpointError, Stopped
from imgrec.training.callbacks.finite import NotFiniteError
from imgrec.training.callbacks.tensorboard import event_file_sizes
from imgrec.training.checkpoint import CheckpointWriter
from imgrec.training.lightning_compat import (
    LoopPosition,
    Plain,
    is_within_batch,
    is_within_epoch,
    loop_position,
    micro_batches_done,
    restart_is_over,
    restore_trained_weights,
    set_loop_position,
)
from imgrec.training.module import Classifier
from imgrec.training.resume_state import RankState, StepSnapshot, rank_state, restore_rank_state, to_plain_data

if TYPE_CHECKING:
    from imgrec.config.schema import RunConfig
    from imgrec.distributed.heartbeat import Heartbeat
    from imgrec.training.run_dir import RunDir


# A save that took t seconds, of waiting and of the writer's processor time, comes after SHARE * t seconds without one: saving takes 1% of the time.
SHARE = 100
SPEED = 500e6  # bytes of states per second, before anything was measured (copied and written at 600e6 to 1e9 on a 2-core Xeon)


class StepBoundary(Callback):
    """Called by the loaders while a batch is fetched (`fetching`, `waiting`) and before it is handed over (`before`).

    `resume` is the "resume" entry of the checkpoint that the run goes on from; `beat` is told what this process does; `say` prints a line.
    """

    def __init__(
        self,
        run: "RunConfig",
        folder: "RunDir",
        writer: CheckpointWriter,
        resume: Plain | None,
        beat: "Heartbeat",
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.writer, self.beat, self.say = folder, writer, beat, say
        self.every_steps, self.every_minutes = run.trainer["save_every_steps"], run.trainer["save_every_minutes"]
        self.max_minutes = run.trainer["max_minutes"]
        self.saving = False
        self.saved: LoopPosition | None = None  # by the last save
        self._resume = resume
        self._entry: Plain | None = None  # of the save under way
        self._snapshot: StepSnapshot | None = None  # while one rank trains
        self._updating = False  # the optimizer is changing the weights
        self._begun = self._last = time.monotonic()

    # What Lightning calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Classifier)
        self.trainer, self.classifier = trainer, pl_module

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert self._resume is not None
        self.saved = LoopPosition(**self._resume["place"])
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches  # type: ignore[attr-defined]
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)  # Lightning counts them only later
        set_loop_position(checkpoint["loops"], self.saved, micro_batches=batches, accumulate=trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1:
            self._snapshot = StepSnapshot(self.classifier)
        self._begun = self._last = time.monotonic()
        states = 3 * sum(
            parameter.numel() * parameter.element_size() for parameter in self.classifier.parameters()
        )  # with Adam's
        self._cost = states / SPEED  # seconds; from then on those that the last save kept the training waiting
        if self._resume is not None:
            assert self.saved is not None
            restore_rank_state(self.classifier, self._resume["ranks"], self.saved)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._updating = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        restart_is_over(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = loop_position(trainer)
        self._save(LoopPosition(now.epoch, 0, "end", now.step), rank_state(self.classifier))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._entry is not None:
            checkpoint["resume"] = self._entry

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, on one rank; of several ranks the others wait in a collective for this one. Not where the loss is not finite or the disk is full."""
        if self._snapshot is not None and not isinstance(exception, Stopped | NotFiniteError | CheckpointError):
            self._rescue(self._snapshot)

    # What the loaders call

    def fetching(self) -> None:
        """The next batch is being fetched."""
        self._do("waiting for data of")

    def waiting(self) -> None:
        """It is not there yet: stop if that is asked for. The other processes wait in `before`, or do the same."""
        if signals.stop_reason() is not None:
            self.before()

    def before(self) -> None:
        """It is there: all processes agree to go on, to save first, or to stop, which raises Stopped on all of them."""
        if self.max_minutes is not None and time.monotonic() - self._begun > 60 * self.max_minutes:
            signals.request_stop(f"the time budget of {self.max_minutes:g} minutes")
        training = bool(self.trainer.training)
        now = loop_position(self.trainer)
        stop, save = self._reduce(signals.stop_reason() is not None, training and self.trainer.is_global_zero and self._due(now))
        if stop:
            self._stop(now)
        if training:
            if save:
                self._save(now, rank_state(self.classifier))
            if self._snapshot is not None:
                self._snapshot.take(now)
            self._updating = False
        self._do("training" if training else "at")

    def _reduce(self, *flags: bool) -> list[bool]:
        """Each flag, set on any process."""
        if self.trainer.world_size == 1:
            return list(flags)
        self._do("waiting for the others before")
        found = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def _do(self, what: str) -> None:
        trainer = self.trainer
        if trainer.training:
            self.beat.doing = f"{what} step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1})"
        else:
            batch = "validation" if trainer.validating else "test"
            self.beat.doing = f"{what} a {batch} batch (epoch {trainer.current_epoch + 1})"

    # Saving

    def _due(self, now: LoopPosition) -> bool:
        waited = time.monotonic() - self._last
        if now == self.saved or now.step == 0:
            return False
        if self.every_steps and now.step % self.every_steps == 0:
            return True
        return waited >= SHARE * (self._cost + self.writer.seconds) and (now.done == 0 or waited >= 60 * self.every_minutes)

    def _save(self, now: LoopPosition, state: RankState) -> None:
        """Write last.ckpt as of `now`, when this rank's state was `state`; every rank calls it."""
        begun = time.monotonic()
        self.beat.doing = f"saving at step {now.step}"
        self.saving = True
        mine = to_plain_data(state)
        states: list[Any] = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            distributed.all_gather_object(states, mine)
        self._entry = {"place": now.to_dict(), "ranks": states, "events": event_file_sizes(self.trainer)}
        self.trainer.save_checkpoint(self.folder.last)
        self._entry, self.saved, self.saving = None, now, False
        self._last = time.monotonic()
        self._cost = self._last - begun

    def _stop(self, now: LoopPosition) -> NoReturn:
        reason = signals.stop_reason() or "a signal to another process"
        signals.request_stop(reason)
        step = f"at step {self.trainer.global_step} (epoch {self.trainer.current_epoch + 1} of {self.trainer.max_epochs})"
        if self.trainer.testing:
            step = "in the test"  # all is saved
        else:
            restore_trained_weights(self.trainer)
            self._save(now, rank_state(self.classifier))
            self.writer.wait()
        raise Stopped(f"stopped by {reason} {step}; saved. Start the same command again to go on.")

    def _rescue(self, snapshot: StepSnapshot) -> None:
        """After an exception: save as of the last step boundary, unless some weights are new already, or an epoch's hooks were run by halves."""
        trainer = self.trainer
        if not is_within_epoch(trainer):
            return
        between_steps = not is_within_batch(trainer) and micro_batches_done(trainer) % trainer.accumulate_grad_batches == 0
        if between_steps or trainer.validating:
            restore_trained_weights(trainer)
            snapshot.take(loop_position(trainer))
        elif self._updating:
            return
        else:
            snapshot.restore_buffers()
        position, state = snapshot.at
        self._save(position, state)
        self.writer.wait()
        self.say(f"saved at step {position.step}, before the error.")
