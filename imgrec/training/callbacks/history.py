"""metrics.csv: one row an epoch, and the best one remembered over a resume."""

import csv
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from imgrec.config.schema import monitor_mode
from imgrec.files import atomic_write
from imgrec.training.callbacks.best import is_as_good
from imgrec.training.callbacks.logger import learning_rate
from imgrec.training.module import Classifier

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train/loss",
    "train/accuracy",
    "val/loss",
    "val/accuracy",
    "val/macro_f1",
    "val/top5",
    "images_per_second",
    "data_wait_share",
    "seconds",
    "best",
)


class History(Callback):
    """Collects the figures of each epoch after validation and rewrites metrics.csv.

    The rows travel in the checkpoint, so a resumed run shows each epoch once. `best` marks the rows that were the best
    so far by `monitor`.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        self.path = path
        self.monitor = monitor
        self.rows: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        return "History"

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch."""
        return next((row for row in reversed(self.rows) if row["best"]), None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.log_training()
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name in COLUMNS}
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": learning_rate(trainer),
            **figures,
        }
        row["best"] = self._is_best(row)
        self.rows.append(row)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows({**row, "best": int(row["best"])} for row in self.rows)
            atomic_write(self.path, text.getvalue())

    def _is_best(self, row: dict[str, Any]) -> bool:
        if self.monitor not in row:
            return False
        minimize = monitor_mode(self.monitor) == "min"
        before = [row[self.monitor] for row in self.rows if self.monitor in row]
        return all(is_as_good(row[self.monitor], value, minimize=minimize) for value in before)
