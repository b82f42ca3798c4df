"""Images per second, and where the time of each epoch goes."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from imgrec.data.batch import Batch
from imgrec.training.timeline import NOT_STEPS, PARTS, CudaClock, HostClock, Timeline, share_columns
from imgrec.training.torch_compat import after_gradients


class Throughput(pl.Callback):
    """Measures images_per_second (all devices), seconds, and the share of each part of the time (PARTS) of each training epoch.

    `timeline` is told the other parts of the time by those who know them: the loader that a batch is waited for and has
    come, StepBoundary and BestCheckpoint that they save.
    """

    def __init__(self, *, warm_up: int, timeline: Timeline) -> None:
        """warm_up: steps of a start that are left out: the first one opens workers, chooses algorithms, compiles."""
        self.warm_up, self.timeline = warm_up, timeline
        self._images = self._steps = 0
        self._seconds = HostClock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timeline.start(CudaClock() if pl_module.device.type == "cuda" else HostClock())
        self._epoch_start = self._seconds.stamp()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        self.timeline.enter("compute")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if trainer.world_size > 1:
            after_gradients(loss, lambda: self.timeline.enter("communication"))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            self.timeline.enter("compute")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.timeline.enter("optimizer")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.timeline.enter("other")
        self._steps += 1
        if self._steps <= self.warm_up:
            self.timeline.clear()
        else:
            self._images += len(batch.labels)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timeline.enter("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timeline.enter("other")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        taken = self.timeline.take()
        mean = torch.tensor([taken[part] for part in PARTS], dtype=torch.float64).float().to(pl_module.device)
        mean = trainer.strategy.reduce(mean, reduce_op="mean")  # ranks wait for one another: each has another part of the story
        seconds = dict(zip(PARTS, mean.tolist(), strict=True))
        figures = share_columns(seconds)
        stepping = sum(seconds[part] for part in PARTS if part not in NOT_STEPS)
        if self._images and stepping:
            figures["images_per_second"] = trainer.world_size * self._images / stepping
        now = self._seconds.stamp()
        figures["seconds"] = now - self._epoch_start
        pl_module.log_dict(figures, logger=False, rank_zero_only=True)
        self._images, self._epoch_start = 0, now
