"""The steps of a learning-rate range test."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from imgrec.training.module import Classifier


class LRRange(pl.Callback):
    """Sets `rates[i]` in step i, times each group's share of `lr` (the optimizer's); `losses[i]` is its mean loss.

    Stops the training, and sets `stopped`, where `diverged(losses)`. Needs an optimizer without schedulers.
    """

    def __init__(
        self,
        rates: NDArray[np.float64],
        *,
        lr: float,
        diverged: Callable[[NDArray[np.float64]], bool],
        advance: Callable[[], None],
    ) -> None:
        self.rates, self.lr, self.diverged, self.advance = rates, lr, diverged, advance
        self.losses: list[float] = []
        self.stopped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shares = [group["lr"] / self.lr for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = float(self.rates[trainer.global_step]) * share

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, Classifier)
        if trainer.global_step == len(self.losses):
            return  # the step is not complete
        self.losses.append(float(pl_module.step_loss()))
        self.advance()
        trainer.should_stop = self.stopped = self.diverged(np.array(self.losses))
