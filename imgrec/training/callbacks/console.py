"""One line an epoch, and on a terminal a live bar."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from imgrec.data.datamodule import DataModule
from imgrec.data.folder import FileData
from imgrec.errors import plural
from imgrec.terminal import Terminal, duration, percent
from imgrec.training.callbacks.history import History
from imgrec.training.callbacks.steps import StepMetrics
from imgrec.training.held_back import data_setting
from imgrec.training.lightning_compat import count_micro_batches

# The columns: title, width with the blanks before it, metric, form. 80 characters wide; metrics.csv has the rest.
CELLS: tuple[tuple[str, int, str, Callable[[Any], str]], ...] = (
    ("train loss", 12, "train/loss", "{:.4f}".format),
    ("acc", 8, "train/accuracy", percent),
    ("val loss", 10, "val/loss", "{:.4f}".format),
    ("acc", 8, "val/accuracy", percent),
    ("lr", 9, "lr", "{:.1e}".format),
    ("images/s", 10, "images_per_second", "{:,.0f}".format),
    ("wait", 5, "data_wait_share", "{:.0%}".format),  # for images
    ("time", 6, "seconds", duration),
)
HEADER = "".join(["  epoch", *(f"{title:>{width}}" for title, width, _, _ in CELLS)])
LEFT_OUT = "left out that cannot be read"
EVERY_SECONDS = 0.1  # how often the loss beside the bar is fetched from the device


class EpochLines(pl.Callback):
    """Prints the figures that `history` collected, and beside the bar the loss of StepMetrics, where that runs too."""

    def __init__(self, *, data_wait: float, terminal: Terminal, history: History) -> None:
        """data_wait: share of an epoch's time that the network waited for images, above which a line says so."""
        self.data_wait, self.terminal, self.history = data_wait, terminal, history
        self._steps: StepMetrics | None = None
        self._progress = terminal.bar()
        self._said_waiting = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._said_images = {LEFT_OUT: len(trainer.datamodule.bad_images())}  # type: ignore[attr-defined]  # before a resume
        self._steps = next((other for other in trainer.callbacks if isinstance(other, StepMetrics)), None)  # type: ignore[attr-defined]
        self.terminal.say(HEADER, style="bold")
        self._progress.start()
        self.on_train_epoch_start(trainer, pl_module)  # no epoch starts in a run that resumes within one

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = int(trainer.num_training_batches)
        what = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._begin(what, batches, done=count_micro_batches(trainer) % max(1, batches))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("validation", int(sum(trainer.num_val_batches)))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("calibration", int(sum(trainer.num_predict_batches)))  # of validation, to fit the temperature
        self._progress.start()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("test", int(sum(trainer.num_test_batches)))
        self._progress.start()

    def _begin(self, what: str, total: int, done: int = 0) -> None:
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(what, total=total, note="", completed=done)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._progress.disable:
            return
        (task,) = self._progress.tasks
        self._progress.advance(task.id)
        elapsed = task.elapsed or 0
        loss = self._steps.loss if self._steps and trainer.training else None
        if loss is not None and elapsed > EVERY_SECONDS * (1 + task.fields.get("shown", 0)):
            self._progress.update(task.id, note=f"loss {float(loss):.4f}", shown=int(elapsed / EVERY_SECONDS))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.history.rows[-1]
        self.terminal.say(epoch_line(row, trainer.max_epochs or 0), style="green" if row["best"] else None)
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._say_images(data.bad_images(), LEFT_OUT)
        self._say_images(data.constant_images(), "with the same value everywhere")
        waited = row.get("data_wait_share", 0.0)
        fills = row["epoch"] == 1 and isinstance(data.data, FileData) and data.data.cache == "ram"  # the others read no files
        if waited > self.data_wait and not fills and not self._said_waiting:
            self._said_waiting = True
            self.terminal.say(f"  The network waited {waited:.0%} of the time for data. {data_setting(data)}", style="yellow")

    def _say_images(self, paths: list[str], what: str) -> None:
        """A line where there are more of them than at the last call."""
        if len(paths) > self._said_images.get(what, 0):
            self._said_images[what] = len(paths)
            shown = f"{paths[0]}{', ...' if len(paths) > 1 else ''}"
            self.terminal.say(f"  {plural(len(paths), 'image')} {what}: {shown}", style="yellow")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.stop()
        for callback in trainer.early_stopping_callbacks:
            if callback.stopped_epoch:
                self.terminal.say(
                    f"stopped early after epoch {callback.stopped_epoch + 1}: "
                    f"no better {callback.monitor} for {callback.patience} validations"
                )

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.stop()

    on_test_end = on_predict_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._progress.stop()


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """The figures of an epoch, aligned under HEADER; '-' for what was not measured."""
    cells = [f"{form(row[name]) if name in row else '-':>{width}}" for _, width, name, form in CELLS]
    return "".join([f"{row['epoch']}/{epochs}".rjust(7), *cells]) + (" best" if row["best"] else "")
