"""The loss and the learning rate by step."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor

from imgrec.training.callbacks.history import History
from imgrec.training.module import Classifier


class StepMetrics(pl.Callback):
    """Logs step/loss and step/lr every trainer.log_every_steps, and lr each epoch; with logger=none it logs nothing.

    `loss`: of the newest step; where several ranks train, of the newest that was logged, as the ranks have to add it up.
    """

    loss: Tensor | None = None

    def __init__(self, *, history: History) -> None:
        self.history = history

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, Classifier)
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if step == self._step:
            return  # it is not complete
        self._step = step
        if due or trainer.world_size == 1:
            self.loss = pl_module.step_loss()
        if due and trainer.logger is not None and not isinstance(trainer.logger, DummyLogger):
            assert self.loss is not None
            trainer.logger.log_metrics({"step/loss": float(self.loss), "step/lr": self.history.rate}, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics({"lr": self.history.rate}, trainer.global_step)
