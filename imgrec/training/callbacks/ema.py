"""An average of the weights."""

from functools import partial
from itertools import chain

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from imgrec.training.lightning_compat import average_model


class EMA(WeightAveraging):
    """decay * average + (1 - decay) * weights, every `every_steps` steps; the weights of the first one to begin with.

    Lightning's EMAWeightAveraging computes it so that constants among the buffers drift: mean and std of the images by a
    rounding, which a resumed run has not; and whole numbers, such as the indices of Swin's positions, are cut to one less.
    """

    def __init__(self, *, decay: float, every_steps: int) -> None:
        super().__init__()
        self.decay, self.every_steps = decay, every_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.every_steps == 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # torch's own update asks the device for this count in every step, and so waits for it.
            averages = average_model(self)
            averages.n_averaged = averages.n_averaged.cpu()
            averages.update_parameters = partial(update_average, averages, decay=self.decay)  # type: ignore[method-assign]


@torch.no_grad()
def update_average(averages: AveragedModel, model: nn.Module, *, decay: float) -> None:
    """The next averages of the parameters and buffers of `model`, in place; at the first call its values."""
    begins = int(averages.n_averaged) == 0
    ours = chain(averages.module.parameters(), averages.module.buffers())
    for averaged, current in zip(ours, chain(model.parameters(), model.buffers()), strict=True):
        averaged.copy_(current if begins else average(averaged, current, decay=decay))
    averages.n_averaged += 1


def average(averaged: Tensor, current: Tensor, *, decay: float) -> Tensor:
    """The next average of a parameter or buffer; what is equal stays as it is, and whole numbers are the current ones."""
    if not averaged.is_floating_point():
        return current
    return torch.where(averaged == current, current, torch.lerp(averaged, current, 1 - decay))  # lerp alone: inf becomes nan


def build_ema(*, decay: float, every_steps: int) -> EMA | None:
    """None for decay 0."""
    return EMA(decay=decay, every_steps=every_steps) if decay else None
