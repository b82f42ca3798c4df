"""What every logger gets beside the metrics of epochs: the config, loss and learning rate by step, the test metrics."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor

from imgrec.config.schema import Node, leaves
from imgrec.training.module import Classifier


class LogSteps(pl.Callback):
    """Logs on the first rank; with logger=none it logs nothing.

    `loss`: of the newest step; where several ranks train, of the newest that was logged, as the ranks have to add it up.
    """

    loss: Tensor | None = None

    def __init__(self, config: Node, *, every_steps: int) -> None:
        self.config, self.every_steps = config, every_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.logger is not None and not isinstance(trainer.logger, TensorBoardLogger):  # which gets it at the end
            trainer.logger.log_hyperparams(flat_config(self.config))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, Classifier)
        step, due = trainer.global_step, trainer.global_step % self.every_steps == 0
        if step == self._step:
            return  # it is not complete
        self._step = step
        if due or trainer.world_size == 1:
            self.loss = pl_module.step_loss()
        if due and trainer.logger is not None and not isinstance(trainer.logger, DummyLogger):
            assert self.loss is not None
            trainer.logger.log_metrics({"step/loss": float(self.loss), "step/lr": learning_rate(trainer)}, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics({"lr": learning_rate(trainer)}, trainer.global_step)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        report = pl_module.test_report
        if trainer.logger is not None and not isinstance(trainer.logger, TensorBoardLogger):
            figures = {"test/loss": report.loss, "test/accuracy": report.accuracy, "test/macro_f1": report.macro_f1}
            trainer.logger.log_metrics(figures, trainer.global_step)


def learning_rate(trainer: pl.Trainer) -> float:
    """The current rate of the last parameter group, the head's."""
    return float(trainer.optimizers[0].param_groups[-1]["lr"])


def flat_config(config: Node) -> dict[str, bool | int | float | str]:
    """Dotted names to what a table of hyper-parameters shows: lists and null go there as text."""
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves(config)}
