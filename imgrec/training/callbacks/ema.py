"""An average of the weights."""

from functools import partial

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """decay * average + (1 - decay) * weights, every `every_steps` steps; the weights of the first one to begin with.

    Lightning's EMAWeightAveraging computes it so that constants among the buffers drift: mean and std of the images by a
    rounding, which a resumed run has not; and whole numbers, such as the indices of Swin's positions, are cut to one less.
    """

    def __init__(self, *, decay: float, every_steps: int) -> None:
        super().__init__(avg_fn=partial(average, decay=decay))
        self.every_steps = every_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.every_steps == 0


def average(averaged: Tensor, current: Tensor, count: Tensor | int, *, decay: float) -> Tensor:
    """The next average of a parameter or buffer; what is equal stays as it is, and whole numbers are the current ones."""
    if not averaged.is_floating_point():
        return current
    return torch.where(averaged == current, current, torch.lerp(averaged, current, 1 - decay))  # lerp alone: inf becomes nan


def build_ema(*, decay: float, every_steps: int) -> EMA | None:
    """None for decay 0."""
    return EMA(decay=decay, every_steps=every_steps) if decay else None
