"""Images per second, and how long the network waited for them."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from imgrec.data.batch import Batch


class Throughput(pl.Callback):
    """Logs images_per_second (all devices), data_wait_share and seconds of each training epoch."""

    def __init__(self, *, warm_up: int) -> None:
        """warm_up: steps of an epoch that are left out: the first one opens workers, chooses algorithms, compiles."""
        self.warm_up = warm_up

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_start = self._mark = time.perf_counter()
        self._waited = self._worked = 0.0
        self._images = self._steps = 0

    on_train_start = on_train_epoch_start  # no epoch starts in a run that resumes within one

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._steps >= self.warm_up:
            self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._steps >= self.warm_up:
            self._worked += now - self._mark
            self._images += len(batch.labels)
        self._steps += 1
        self._mark = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the last steps are still being computed
            self._worked += time.perf_counter() - self._mark
        seconds = self._waited + self._worked
        if self._images and seconds:
            pl_module.log_dict(
                {"images_per_second": trainer.world_size * self._images / seconds, "data_wait_share": self._waited / seconds},
                rank_zero_only=True,
            )
        pl_module.log("seconds", time.perf_counter() - self._epoch_start, rank_zero_only=True)
