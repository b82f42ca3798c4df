"""What every logger gets beside the metrics of steps and epochs: the config and the test metrics."""

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from imgrec.config.schema import Node, leaves
from imgrec.errors import printable
from imgrec.training.module import Classifier


class LogRun(pl.Callback):
    """Logs on the first rank. TensorBoard gets both together, from TensorBoardExtras."""

    def __init__(self, config: Node) -> None:
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.logger is not None and not isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.log_hyperparams(flat_config(self.config))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        report = pl_module.test_report
        if trainer.logger is not None and not isinstance(trainer.logger, TensorBoardLogger):
            figures = {"test/loss": report.loss, "test/accuracy": report.accuracy, "test/macro_f1": report.macro_f1}
            trainer.logger.log_metrics(figures, trainer.global_step)


def flat_config(config: Node) -> dict[str, bool | int | float | str]:
    """Dotted names to what a table of hyper-parameters shows: lists and null go there as text, bytes that are no UTF-8 as '?'."""
    return {
        printable(key): value if isinstance(value, bool | int | float) else printable(str(value)) for key, value in leaves(config)
    }
