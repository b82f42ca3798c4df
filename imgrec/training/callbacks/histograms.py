"""Histograms of weights and gradients."""

from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from imgrec.distributed.sharding import gather_whole
from imgrec.training.callbacks.steps import gradient_scale
from imgrec.training.loggers import HistogramLogger
from imgrec.training.module import Classifier


class Histograms(pl.Callback):
    """Logs weights/NAME and weights_gradient/NAME of each parameter before the last step of every n-th epoch, which waits for a GPU.

    For a logger that shows histograms; the gradients are those before they are clipped.
    """

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        if not trainer.is_last_batch or (trainer.current_epoch + 1) % self.every_epochs:
            return
        assert isinstance(pl_module, Classifier)
        scale, logger = gradient_scale(trainer, optimizer), trainer.logger
        for name, parameter in pl_module.net.named_parameters():
            found: dict[str, Any] = {f"weights/{name}": parameter.detach()}
            if parameter.grad is not None:
                found[f"weights_gradient/{name}"] = parameter.grad / scale
            for tag, values in gather_whole(found, keep=trainer.is_global_zero).items():  # of shards all ranks have to
                if isinstance(logger, HistogramLogger) and (finite := values[values.isfinite()]).numel():
                    logger.log_histogram(tag, finite, trainer.global_step + 1)  # a step of 16 bits may overflow, and is left out


def build_histograms(*, every_epochs: int) -> Histograms | None:
    """None for 0."""
    return Histograms(every_epochs) if every_epochs else None
