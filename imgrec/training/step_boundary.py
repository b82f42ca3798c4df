"""The step boundary: where all ranks of a run agree to save or to stop.

Signals, the time budget and the time of the last save only set flags. Before each optimizer step and each validation
batch the ranks reduce them, so that all save and stop at the same step, and no collective runs inside a signal handler.
Several ranks start the reduction at one boundary and act on it at the next, so that none waits there for the others;
one rank acts at once.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from torch import distributed

from imgrec.config.schema import TrainerConfig
from imgrec.data.batch import Batch
from imgrec.data.loader import StoppedWaiting
from imgrec.distributed import signals
from imgrec.distributed.flag_reduction import FlagReduction
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.watchdog import Watchdog
from imgrec.errors import CheckpointError, ImgrecError, NotFiniteError, Stopped
from imgrec.inference.device import is_out_of_memory
from imgrec.training.callbacks.steps import StepMetrics
from imgrec.training.checkpoint import CheckpointWriter, to_cpu
from imgrec.training.event_files import event_file_sizes
from imgrec.training.lightning_compat import (
    LoopPosition,
    Plain,
    count_micro_batches,
    forget_restart,
    is_within_batch,
    is_within_epoch,
    read_loop_position,
    restore_trained_weights,
    set_loop_position,
)
from imgrec.training.module import Classifier
from imgrec.training.out_of_memory import free_tensors
from imgrec.training.resume_point import ResumePoint
from imgrec.training.resume_state import StepSnapshot, restore_rank_state, take_rank_state
from imgrec.training.timeline import Timeline

# After a save that took t seconds (of waiting and of the writer's processor time) the next comes
# SAVE_INTERVAL_FACTOR * t seconds later: saving takes 1% of the time.
SAVE_INTERVAL_FACTOR = 100
# Bytes of states per second, before anything was measured (copied and written at 600e6 to 1e9 on a 2-core Xeon).
COPY_RATE = 500e6


class StepBoundary(pl.Callback):
    """The first of the callbacks: what others change when a batch starts belongs to the step after the boundary.

    Lightning has fetched a batch when it calls on_train_batch_start. A resumed run fetches it again: the order of the
    data is a function of the position, which counts complete batches. `last` is the file to save, `say` prints a line.
    """

    def __init__(
        self,
        config: TrainerConfig,
        last: Path,
        writer: CheckpointWriter,
        resume: ResumePoint | None,
        heartbeat: Heartbeat,
        watchdog: Watchdog,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.last, self.writer, self.resume = config, last, writer, resume
        self.timeline = Timeline()
        self.heartbeat, self.watchdog, self.say = heartbeat, watchdog, say
        self._saved = None if resume is None else resume.position  # by the last save
        self._entry: Plain | None = None  # of the save under way
        self.restored = False  # all that a checkpoint holds
        self._snapshot: StepSnapshot | None = None  # while one rank trains
        self._flags = FlagReduction(2)  # stop, save; where several ranks train
        self._updating = False  # the optimizer is changing the weights
        self._evaluated: int | None = None  # images at once, where the memory did not hold more
        self._began = self._saved_at = time.monotonic()
        self._save_s = 0.0  # that the last save kept the training waiting

    # What Lightning calls

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert self._saved is not None
        self.watchdog.saved_step = self._saved.step
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]  # Lightning counts them only later
        accumulate = trainer.accumulate_grad_batches
        set_loop_position(checkpoint["loops"], self._saved, micro_batches=batches, accumulate=accumulate)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.resume is not None:
            restore_rank_state(pl_module, self.resume.state["ranks"], self.resume.position)
        self.restored = True
        if trainer.world_size == 1:
            self._snapshot = StepSnapshot(pl_module)
        self._began = self._saved_at = time.monotonic()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in pl_module.parameters())
        self._save_s = 3 * weights / COPY_RATE  # with Adam's states
        self._report(trainer, "waiting for data of")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer, "waiting for data of")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.timeline.enter("other")  # the batch is on the device
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._pass_boundary(trainer, batch)
        else:
            self._report(trainer, "training")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._updating = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._report(trainer, "waiting for data of")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        forget_restart(trainer)
        self._report(trainer, "waiting for data of")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if (most := pl_module.halving.most) != self._evaluated:
            self._evaluated = most
            self.say(f"Evaluation computes {most} at once from now on, as the memory did not hold more images.")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, replace(read_loop_position(trainer), done=0, stage="end"))
        self._flags.wait()  # a stop requested in the last step or validation is read at the first test batch

    def on_test_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._report(trainer, "waiting for data of")

    # After each of them the next batch is waited for.
    on_validation_batch_end = on_test_batch_end = on_test_start  # type: ignore[assignment]
    on_predict_start = on_predict_batch_end = on_test_start  # type: ignore[assignment]

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, *args: Any) -> None:
        self._pass_boundary(trainer, batch)

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start  # type: ignore[assignment]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._flags.wait()

    on_predict_end = on_test_end

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._entry is not None:
            checkpoint["resume"] = self._entry

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, on one rank: of several, the others wait in a collective. Not if the loss is NaN or the disk full."""
        saved = isinstance(exception, Stopped) and not isinstance(exception, StoppedWaiting)
        if self._snapshot is None or saved or isinstance(exception, NotFiniteError | CheckpointError):
            return
        if isinstance(exception, Exception) and is_out_of_memory(exception):
            free_tensors(exception)  # the save needs memory too
        try:
            self._rescue(trainer, self._snapshot)
        except ImgrecError as error:
            self.say(f"not saved: {error}")

    # The boundary

    def _pass_boundary(self, trainer: pl.Trainer, batch: Batch) -> None:
        """All ranks continue, save first, or stop, which raises Stopped on all of them."""
        training = trainer.training
        self.watchdog.pass_boundary((training, batch.images.shape))
        minutes, every = self.config.max_minutes, self.config.save_every_steps
        if minutes is not None and time.monotonic() - self._began > 60 * minutes:
            signals.request_stop(f"the time budget of {minutes:g} minutes")
        now = read_loop_position(trainer)
        if trainer.world_size == 1:
            stop, save = self._own_flags(trainer, now)
        else:
            if not self._flags.is_complete():
                self._report(trainer, "waiting for the others before")
            with self.timeline.during("communication"):
                stop, save = self._flags.result()
        if stop:
            self._stop(trainer, now)
        if training:
            due = every and now.step % every == 0  # the step number is the same on all ranks
            if (save or due) and now.step > 0 and now != self._saved:
                self._save(trainer, now)
            if self._snapshot is not None:
                self._snapshot.take(now)
            self._updating = False
        if trainer.world_size > 1:
            self._flags.start(*self._own_flags(trainer, now))
        self._report(trainer, "training" if training else "at")

    def _own_flags(self, trainer: pl.Trainer, now: LoopPosition) -> tuple[bool, bool]:
        """Whether this rank wants to stop, and to save."""
        return signals.stop_reason() is not None, trainer.is_global_zero and self._is_time_to_save(trainer, now)

    def _report(self, trainer: pl.Trainer, what: str) -> None:
        batch = (
            f"step {trainer.global_step + 1}" if trainer.training else f"a {'test' if trainer.testing else 'validation'} batch"
        )
        self.heartbeat.doing = f"{what} {batch} (epoch {trainer.current_epoch + 1})"

    # Saving

    def _is_time_to_save(self, trainer: pl.Trainer, now: LoopPosition) -> bool:
        """At the start of an epoch (several ranks decide in the validation before it), or long after the last save."""
        waited = time.monotonic() - self._saved_at
        due = waited >= SAVE_INTERVAL_FACTOR * (self._save_s + self.writer.seconds)
        return due and (now.done == 0 or not trainer.training or waited >= 60 * self.config.save_every_minutes)

    def _save(self, trainer: pl.Trainer, now: LoopPosition, state: Plain | None = None) -> None:
        """Write last.ckpt as of `now`, with `state` as the rank state, or the present one. A collective."""
        with self.timeline.during("checkpoint"):
            self._save_timed(trainer, now, state)

    def _save_timed(self, trainer: pl.Trainer, now: LoopPosition, state: Plain | None) -> None:
        began = time.monotonic()
        self.heartbeat.doing = f"saving at step {now.step}"
        classifier = trainer.lightning_module
        assert isinstance(classifier, Classifier)
        mine = to_cpu(state or take_rank_state(classifier)) | {"left_out": trainer.datamodule.bad_images()}  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepMetrics):
                callback.write(trainer, wait=True)  # the event files are measured
        states: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(states, mine)
        with self.watchdog.save(now.step):  # from here on no rank waits for another
            self._entry = {"position": asdict(now), "ranks": states, "events": event_file_sizes(trainer)}
            self._entry["precision"] = self.config.precision
            trainer.save_checkpoint(self.last)
            self._entry = None
        self._saved, self._saved_at = now, time.monotonic()
        self._save_s = self._saved_at - began

    def _stop(self, trainer: pl.Trainer, now: LoopPosition) -> NoReturn:
        reason = self._stop_reason(trainer)
        signals.request_stop(reason)
        step = f"at step {now.step} (epoch {trainer.current_epoch + 1} of {trainer.max_epochs})"
        if trainer.testing or trainer.predicting:
            step = "in the test"  # everything is saved, but for the temperature
        else:
            restore_trained_weights(trainer)
            self._save(trainer, now)
            self.writer.wait()
        raise Stopped(f"stopped by {reason} {step}; saved. Start the same command again to resume.")

    def _stop_reason(self, trainer: pl.Trainer) -> str:
        """The same on all ranks. A collective."""
        reasons: list[str | None] = [signals.stop_reason()] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(reasons, signals.stop_reason())
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
        return reason if rank == 0 or " on rank " in reason else f"{reason} on rank {rank}"

    def _rescue(self, trainer: pl.Trainer, snapshot: StepSnapshot) -> None:
        """Save as of the last step boundary, except after an exception in an optimizer step or in an epoch's hooks."""
        if not is_within_epoch(trainer):
            return
        between_steps = not is_within_batch(trainer) and count_micro_batches(trainer) % trainer.accumulate_grad_batches == 0
        if between_steps or trainer.validating:
            restore_trained_weights(trainer)
            snapshot.take(read_loop_position(trainer))
        elif self._updating:
            return
        else:
            snapshot.restore_buffers()
        position, state = snapshot.at
        self._save(trainer, position, state)
        self.writer.wait()
        self.say(f"saved at step {position.step}.")
