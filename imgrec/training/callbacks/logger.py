"""What every logger gets beside the figures of steps: the config, the figures of epochs, and at the end those of the test."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from imgrec.config.changes import changed_keys, compared_keys
from imgrec.config.schema import Node, leaves
from imgrec.data.image_data import ImageData
from imgrec.errors import printable
from imgrec.training.callbacks.history import METRICS, History
from imgrec.training.callbacks.pictures import draw_result
from imgrec.training.config_difference import RESUMABLE_KEYS
from imgrec.training.final_test import Tests
from imgrec.training.loggers.tensorboard import ResumableTensorBoardLogger
from imgrec.training.timeline import PARTS, share_column

SHARES = tuple(map(share_column, PARTS))
CHARTS = {
    "train and validation": {
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["train/accuracy", "val/accuracy"],
        "loss by step": ["train/step_loss", "val/loss"],
    },
    "speed": {"where the time goes": [f"speed/{name}" for name in SHARES]},
}


class LogRun(pl.Callback):
    """Logs the config at the start and a row of `history` after each epoch, on the first rank."""

    def __init__(self, config: Node, history: History) -> None:
        self.config, self.history = config, history

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger, resumed = trainer.logger, trainer.ckpt_path is not None
        if isinstance(logger, ResumableTensorBoardLogger):
            if not resumed:
                logger.log_charts(CHARTS)
        elif logger is not None and not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flat_config(self.config))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics(epoch_points(self.history.rows[-1]), trainer.global_step)


def epoch_points(row: dict[str, Any]) -> dict[str, float]:
    """The tags of what a logger gets of a row of metrics.csv, in which the rate is that of StepMetrics."""
    speed = {f"speed/{name}": row[name] for name in ("images_per_second", *SHARES) if name in row}
    if "seconds" in row:
        speed["speed/epoch_seconds"] = row["seconds"]
    return {name: row[name] for name in METRICS if name in row} | speed


def log_result(trainer: pl.Trainer, tests: Tests, data: ImageData, history: History, config: Node, sheet: Path | None) -> None:
    """At the end of a run: the figures of the test and its pictures; `sheet` is the one of the worst errors.

    TensorBoard's table of hyper-parameters gets the figures with the keys that runs differ in.
    """
    logger, best, step = trainer.logger, history.best() or history.rows[-1], history.rows[-1]["step"]
    report = tests.report
    if logger is None or isinstance(logger, DummyLogger):
        return
    figures: dict[str, float] = {}  # in the order of the columns of TensorBoard's table
    if report is not None:
        figures |= {"test/accuracy": report.accuracy, "test/macro_f1": report.macro_f1, "test/loss": report.loss}
    figures["val/best_accuracy"] = best["val/accuracy"]
    keys = flat_config({key: value for key, value in compared_keys(config).items() if key not in RESUMABLE_KEYS})
    if isinstance(logger, ResumableTensorBoardLogger):
        first = {"optim.lr", *(key for key in changed_keys(config) if key.partition(".")[0] != "data")}
        logger.log_settings(keys, figures, step, first=first)
    elif isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(keys, figures, step)
    else:
        logger.log_metrics(figures, step)
    draw_result(trainer, tests, data, sheet, step)


def flat_config(config: Node) -> dict[str, bool | int | float | str]:
    """Dotted names to what a table of hyper-parameters shows: lists and null go there as text, bytes that are no UTF-8 as '?'."""
    return {
        printable(key): value if isinstance(value, bool | int | float) else printable(str(value)) for key, value in leaves(config)
    }
