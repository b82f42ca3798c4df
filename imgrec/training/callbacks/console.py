"""One line an epoch, and on a terminal a live bar."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.progress import Progress, TaskID

from imgrec.terminal import Terminal, duration, percent
from imgrec.training.callbacks.history import History
from imgrec.training.callbacks.throughput import WORTH_SAYING
from imgrec.training.lightning_compat import count_micro_batches

# 80 characters wide; metrics.csv has the rest.
HEADER = f"{'epoch':>7}  {'train loss':>10}  {'acc':>7}  {'val loss':>8}  {'acc':>7}  {'lr':>8}  {'images/s':>8}  {'time':>5}"
EVERY_SECONDS = 0.1  # how often the loss beside the bar is fetched from the device


class EpochLines(Callback):
    """Prints the figures that History collected; so it stands behind it in the list of callbacks."""

    def __init__(self, terminal: Terminal, history: History) -> None:
        self.terminal = terminal
        self.history = history
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said_waiting = False
        self._left_out = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.terminal.say(HEADER, style="bold")
        self._progress = self.terminal.bar()
        self._progress.start()
        self.on_train_epoch_start(trainer, pl_module)  # no epoch starts in a run that resumes within one

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            int(trainer.num_training_batches),
            count_micro_batches(trainer) % max(1, int(trainer.num_training_batches)),
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance(outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("validation", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance(None)

    def _begin(self, what: str, total: int, done: int = 0) -> None:
        if self._progress is not None and not self._progress.disable:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total, note="", completed=done)

    def _advance(self, outputs: Any) -> None:
        if self._progress is None or self._task is None:
            return
        self._progress.advance(self._task)
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        task = self._progress.tasks[0]
        if loss is not None and (task.elapsed or 0) > EVERY_SECONDS * (1 + task.fields.get("shown", 0)):
            self._progress.update(self._task, note=f"loss {float(loss):.4f}", shown=int((task.elapsed or 0) / EVERY_SECONDS))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.history.rows[-1]
        self.terminal.say(epoch_line(row, trainer.max_epochs or 0), style="green" if row["best"] else None)
        bad = trainer.datamodule.bad_images()  # type: ignore[attr-defined]
        if len(bad) > self._left_out:
            self._left_out = len(bad)
            self.terminal.say(
                f"  {len(bad)} images that cannot be read were left out: {bad[0]}{', ...' if len(bad) > 1 else ''}",
                style="yellow",
            )
        waited = row.get("data_wait_share", 0.0)
        if waited > WORTH_SAYING and not self._said_waiting:
            self._said_waiting = True
            self.terminal.say(
                f"  The network waited {waited:.0%} of the time for data: raise num_workers, use smaller image files, or a set held in memory.",
                style="yellow",
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()
        for callback in trainer.early_stopping_callbacks:
            if callback.stopped_epoch:
                self.terminal.say(
                    f"stopped early after epoch {callback.stopped_epoch + 1}: "
                    f"no better {callback.monitor} for {callback.patience} validations"
                )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """The figures of an epoch, aligned under HEADER; '-' for what was not measured."""

    def cell(name: str, width: int, form: Any) -> str:
        return f"{form(row[name]) if name in row else '-':>{width}}"

    cells = [
        "{}/{}".format(row["epoch"], epochs).rjust(7),
        cell("train/loss", 10, "{:.4f}".format),
        cell("train/accuracy", 7, percent),
        cell("val/loss", 8, "{:.4f}".format),
        cell("val/accuracy", 7, percent),
        cell("lr", 8, "{:.2e}".format),
        cell("images_per_second", 8, "{:,.0f}".format),
        cell("seconds", 5, duration),
    ]
    return "  ".join(cells) + ("  best" if row["best"] else "")
