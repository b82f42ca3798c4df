"""Stop at the step whose loss is not a number."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from imgrec.errors import NotFiniteError

LAG = 10  # steps between a loss and its check: it is copied asynchronously, as a read would wait for the GPU


class FiniteLoss(pl.Callback):
    """Raises NotFiniteError naming the step; nothing is saved after that step, so the last good checkpoint stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._losses: list[tuple[int, int, Tensor, torch.cuda.Event | None]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        loss, copied = loss.detach(), None
        if loss.device.type == "cpu" and math.isfinite(loss.item()):
            return
        if loss.device.type == "cuda":
            loss = loss.to("cpu", non_blocking=True)  # pinned memory, where the value is after the event
            copied = torch.cuda.current_stream().record_event()
        self._losses.append((trainer.current_epoch + 1, trainer.global_step + 1, loss, copied))
        self._check_losses(keep=0 if pl_module.device.type == "cpu" else LAG)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(keep=0)
        # Weights that explode in the last step of an epoch had a finite loss before. The save comes after validation.
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not torch.isfinite(loss):
            self._stop("validation loss", loss, "after", trainer.global_step, trainer.current_epoch + 1)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_losses(keep=0)  # a save between epochs: no unchecked loss may get into it

    def _check_losses(self, keep: int) -> None:
        while len(self._losses) > keep:
            epoch, step, loss, copied = self._losses.pop(0)
            if copied is not None:
                copied.synchronize()
            if not math.isfinite(loss.item()):
                self._stop("loss", loss, "at", step, epoch)

    def _stop(self, what: str, value: Tensor, when: str, step: int, epoch: int) -> None:
        saved = any(self.folder.glob("*.ckpt"))
        kept = f" and {self.folder} keeps the last good checkpoint" if saved else ", before anything was saved"
        raise NotFiniteError(
            f"the {what} is {value.item()} {when} step {step} (epoch {epoch}); training stopped there{kept}. "
            "Lower optim.lr, set trainer.gradient_clip=1.0 or trainer.precision=32, or look at the data of that step."
        )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> Any:
        self._losses.clear()
