"""What loggers and the report show beside the curves: a batch as the network sees it, confusion matrix, recalls, reliability, the worst errors."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torchvision.utils import make_grid

from imgrec.data.image_data import ImageData
from imgrec.data.picture import to_picture
from imgrec.errors import plural
from imgrec.files import atomic_write
from imgrec.inference.confusion_matrix import draw_confusion_matrix
from imgrec.inference.metrics import Report
from imgrec.inference.recall_bars import draw_recall_bars
from imgrec.inference.reliability import draw_reliability
from imgrec.training.final_test import Tests
from imgrec.training.loggers import PictureLogger
from imgrec.training.module import Classifier
from imgrec.training.run_dir import TRAIN_BATCH

LEAST_SIDE = 64  # pixels: smaller images are shown with larger pixels
MOST_WIDE = 800  # pixels of TRAIN_BATCH: 0.5 MB of photographs


class Pictures(pl.Callback):
    """Draws on the first rank: the first batch into the run directory, and for a logger that shows pictures all of them."""

    def __init__(self, *, images: int, every_epochs: int) -> None:
        """images: most of the first batch that are shown. every_epochs: between pictures of a validation; 0: of the test alone."""
        self.images, self.every_epochs = images, every_epochs

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx or trainer.global_step or not self.images or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Classifier)
        images = pl_module.augmented(batch)[0][: self.images]
        if not len(images):  # all of the batch were skipped, as they cannot be read
            return
        picture = batch_picture(images)
        if isinstance(trainer.logger, PictureLogger):
            trainer.logger.log_picture("train/batch", picture, 0)
        picture.thumbnail((MOST_WIDE, picture.height))
        atomic_write(Path(trainer.default_root_dir) / TRAIN_BATCH, png_file(picture))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        epoch = trainer.current_epoch + 1
        if self.every_epochs and epoch % self.every_epochs == 0 and isinstance(trainer.logger, PictureLogger):
            draw_report(trainer.logger, "val", pl_module.validation_report, trainer.global_step, f"val split after epoch {epoch}")


def batch_picture(images: Tensor) -> Image.Image:
    """Network input [B, C, H, W], each image from its darkest to its brightest value, in rows of eight."""
    larger = max(1, LEAST_SIDE // images.shape[-1])
    images = images.repeat_interleave(larger, dim=-1).repeat_interleave(larger, dim=-2)
    grid = make_grid(images.float(), nrow=8, normalize=True, scale_each=True)  # normalised images lie around 0
    return to_picture(grid.mul(255).round().to(torch.uint8).cpu())


def png_file(picture: Image.Image) -> bytes:
    """The content of a .png."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def draw_report(logger: PictureLogger, split: str, report: Report, step: int, title: str) -> None:
    """The confusion matrix and the recall of each class under `split`. 0.6 s for ten classes."""
    title = f"{title}: {report.accuracy:.2%} of {report.count:,} images right"
    for name, draw in (("confusion_matrix", draw_confusion_matrix), ("recall", draw_recall_bars)):
        log_png(logger, f"{split}/{name}", draw(report, title=title), step)


def log_png(logger: PictureLogger, name: str, content: bytes, step: int) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        logger.log_picture(name, picture, step)


def draw_result(trainer: pl.Trainer, tests: Tests, data: ImageData, sheet: Path | None, step: int) -> None:
    """At the end of a run, where it has Pictures: those of the test, and its worst errors from `sheet`, if that is there."""
    logger: Logger | None = trainer.logger
    if not isinstance(logger, PictureLogger) or not any(isinstance(callback, Pictures) for callback in trainer.callbacks):
        return
    if tests.report is None or tests.predictions is None:
        return
    draw_report(logger, "test", tests.report, step, "test split")
    labels, measured = data.split("test").labels, tests.calibration["test"]
    title = f"test split: {plural(len(tests.predictions.indices), 'image')}"
    log_png(logger, "test/reliability", draw_reliability(tests.predictions, labels, measured, title=title), step)
    if sheet is not None and sheet.exists():
        log_png(logger, "test/worst_errors", sheet.read_bytes(), step)
