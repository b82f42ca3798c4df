"""Training images that grow from epoch to epoch."""

from typing import Any

import pytorch_lightning as pl
from torch import nn

from imgrec.config.schema import Node
from imgrec.data.datamodule import DataModule
from imgrec.errors import ConfigError
from imgrec.training.module import Classifier


class ProgressiveSize(pl.Callback):
    """Small images first, as an epoch of them is shorter: Howard 2018, Touvron 2019 (arXiv 1906.06423).

    The side is a function of the epoch and of the number of epochs, so a resumed run has that of the unbroken one. Image
    files are cropped and resized to it; images in memory are made smaller on the device. Evaluation has data.image_size.
    """

    def __init__(self, *, first: int, last: int, begin_share: float, end_share: float, multiple: int) -> None:
        self.first, self.last = first, last
        self.begin_share, self.end_share, self.multiple = begin_share, end_share, multiple

    def side(self, epoch: int, epochs: int) -> int:
        """Pixels: `first` up to begin_share of the epochs, `last` from end_share on, between them multiples on a line."""
        share = (epoch / epochs - self.begin_share) / (self.end_share - self.begin_share)
        if share <= 0:
            return self.first
        if share >= 1:
            return self.last
        side = round((self.first + share * (self.last - self.first)) / self.multiple) * self.multiple
        return min(max(side, self.first), self.last)

    def begins_alike(self, net: nn.Module, *, epochs: int, longer: int, step: int) -> bool:
        return all(self.side(epoch, epochs) == self.side(epoch, longer) for epoch in range(epochs))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.training_side = self.side(trainer.current_epoch, trainer.max_epochs or 1)
        if isinstance(data := trainer.datamodule, DataModule):  # type: ignore[attr-defined]
            data.training_side = pl_module.training_side

    on_train_start = on_train_epoch_start  # no epoch starts in a run that resumes within one


def build_progressive_size(
    *, first: int, last: int, begin_share: float, end_share: float, multiple: int, config: Node
) -> ProgressiveSize | None:
    """None for first 0. ConfigError for sizes that do not grow up to data.image_size at most, or a network of one size."""
    size: int = config["data"]["image_size"]
    if not first:
        return None
    key, last = "callbacks.progressive_size", last or size
    if not first <= last <= size:
        raise ConfigError(
            f"{key}.first={first} {key}.last={last}: expected first <= last <= data.image_size={size}. "
            f"Set {key}.first={size // 2} {key}.last=0."
        )
    if begin_share >= end_share:
        raise ConfigError(
            f"{key}.begin_share={begin_share:g} {key}.end_share={end_share:g}: expected the end after the begin. "
            f"Set {key}.begin_share=0.3 {key}.end_share=0.8."
        )
    model: dict[str, Any] = config["model"]
    if "image_size" in model:
        raise ConfigError(
            f"{key}.first={first}: the network {model['_target_']} is built for images of one size. "
            f"Set model=resnet, or {key}.first=0."
        )
    return ProgressiveSize(first=first, last=last, begin_share=begin_share, end_share=end_share, multiple=multiple)
