"""The speed of some seconds of training."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from imgrec.data.batch import Batch

UNTIMED = 3  # steps at the start, which open workers, choose algorithms, compile


class Stopwatch(pl.Callback):
    """Stops the training after `seconds`, and one step at least, beside `untimed`; `speed`: images per second of these."""

    speed: float

    def __init__(self, seconds: float, *, untimed: int = UNTIMED) -> None:
        self.seconds, self.untimed = seconds, untimed
        self._steps = self._images = 0
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        self._steps += 1
        if self._steps <= self.untimed:
            self._began = self._now(pl_module)
            return
        self._images += len(batch.labels)
        trainer.should_stop = time.perf_counter() - self._began >= self.seconds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.speed = self._images / (self._now(pl_module) - self._began)

    def _now(self, pl_module: pl.LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # steps are still being computed
        return time.perf_counter()
