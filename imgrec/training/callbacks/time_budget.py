"""time=8h: as many epochs as fit into a time, and a schedule that ends with the last of them."""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from imgrec.config.schema import Split
from imgrec.data.datamodule import DataModule
from imgrec.terminal import duration
from imgrec.training.module import Classifier

# Steps of the first epoch that are left out of its estimate, as the first ones choose algorithms, and where it is made.
WARM_UP, ESTIMATED_AT = 5, 20


def epochs_that_fit(budget_s: float, *, elapsed_s: float, done: int, epoch_s: float, test_s: float) -> int:
    """Epochs in all, with the `done` ones, at `epoch_s` seconds for each of the others and the test after the last; one at least."""
    return max(done + int(max(0.0, budget_s - elapsed_s - test_s) / epoch_s), done, 1)


class TimeBudget(pl.Callback):
    """Sets the number of epochs by the time that they take, first in the first epoch and then after each.

    Time counts from the first step, over all starts of a run, with validation and saving. What rank 0 decides is in the
    checkpoint: a resumed run has the schedule of the unbroken one up to the next epoch's end.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, budget_s: float, given: str, say: Callable[[str], None]) -> None:
        """given: the value of `time`, for a line by `say` where the budget is too short."""
        self.budget_s, self.given, self.say = budget_s, given, say
        self._before_s = 0.0  # of earlier starts
        # Epochs as decided, and the seconds at which the steps to measure began, the first epoch took, and a validation took.
        self._decided: dict[str, Any] = {"epochs": None, "began_s": None, "first_s": None, "validation_s": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {**self._decided, "elapsed_s": self._elapsed_s()}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the optimizer and its schedule are made, which read the number of epochs."""
        state = dict(checkpoint["callbacks"][self.state_key])
        self._before_s, self._decided = state.pop("elapsed_s"), state
        if state["epochs"] is not None:
            trainer.fit_loop.max_epochs = state["epochs"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._step = self.clock(), trainer.global_step

    def _elapsed_s(self) -> float:
        return self._before_s + self.clock() - self._began

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        steps = trainer.global_step
        if trainer.current_epoch or steps not in (WARM_UP, ESTIMATED_AT) or steps == self._step:
            return  # the last: a micro-batch of the next step
        self._step = steps
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        _synchronize(pl_module)
        if steps == WARM_UP:
            self._decided["began_s"] = self._elapsed_s()
        elif self._decided["began_s"] is not None and per_epoch > ESTIMATED_AT:
            step_s = (self._elapsed_s() - self._decided["began_s"]) / (ESTIMATED_AT - WARM_UP)
            # A validation batch passes forward only, which is a third of a training step.
            whole_s = step_s * per_epoch * (1 + self._share(trainer, "val", "train") / 3)
            end_s = self._elapsed_s() + (1 - ESTIMATED_AT / per_epoch) * whole_s
            epochs = self._decide(trainer, pl_module, epoch_s=whole_s, elapsed_s=end_s, done=1)
            if epochs == 1 and whole_s > self.budget_s:
                self.say(
                    f"An epoch takes about {duration(whole_s)}, more than time={self.given}: the run ends after one. "
                    "Set trainer.limit_train_batches=0.5 for shorter epochs."
                )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decides here whether this epoch is the last, as what is done in the last validation may differ (BatchNormStatistics)."""
        _synchronize(pl_module)
        self._validation_began = self.clock()
        if trainer.current_epoch == 0:  # a validation batch passes forward only
            self._decided["validation_s"] = self._elapsed_s() * self._share(trainer, "val", "train") / 3
        self._end_epoch(trainer, pl_module, self._elapsed_s() + self._decided["validation_s"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._decided["validation_s"] = self.clock() - self._validation_began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _synchronize(pl_module)
        if self._decided["epochs"] != trainer.current_epoch + 1:  # else the last, as was decided before its validation
            self._end_epoch(trainer, pl_module, self._elapsed_s())

    def _end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, elapsed_s: float) -> None:
        """Decide as of the end of the present epoch, which is after `elapsed_s`."""
        done = trainer.current_epoch + 1
        if done == 1:
            self._decided["first_s"] = elapsed_s
        # The first epoch is slower: workers start, files come from the disk, a compiler works.
        epoch_s = elapsed_s if done == 1 else (elapsed_s - self._decided["first_s"]) / (done - 1)
        self._decide(trainer, pl_module, epoch_s=epoch_s, elapsed_s=elapsed_s, done=done)

    def _decide(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch_s: float, elapsed_s: float, done: int) -> int:
        """Set the number of epochs, of which `done` are complete after `elapsed_s`."""
        assert isinstance(pl_module, Classifier)
        test_s = self._decided["validation_s"] * self._share(trainer, "test", "val")
        epochs = epochs_that_fit(self.budget_s, elapsed_s=elapsed_s, done=done, epoch_s=max(epoch_s, 1e-6), test_s=test_s)
        self._decided["epochs"] = trainer.fit_loop.max_epochs = trainer.strategy.broadcast(epochs)
        pl_module.stretch_schedule()
        return int(self._decided["epochs"])

    def _share(self, trainer: pl.Trainer, split: Split, of: Split) -> float:
        """Images of a split that are read for each image of another; 0 where none of that is."""
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        return data.images_read(split) / images if (images := data.images_read(of)) else 0.0


def _synchronize(pl_module: pl.LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize()  # the last steps are still being computed
