"""What a split is to the loaders: labels in memory, and batches of images on request."""

from typing import Protocol, Self

from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Indices, Request


class ImageSet(Protocol):
    """A split: labels in memory, images on request."""

    labels: Indices  # [N], places in the class list

    def __len__(self) -> int: ...

    def __getitem__(self, request: Request) -> Batch: ...

    def take(self, rows: Indices) -> Self:
        """The split of these rows; an image's index is its place in the new split."""

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        """The same images, with the augmentation that happens per sample, under the run's seed."""
