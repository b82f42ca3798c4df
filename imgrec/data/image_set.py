"""What a split is to the loaders: labels in memory, and batches of images on request."""

from typing import Protocol, Self

from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Indices, Request


class ImageSet(Protocol):
    """A split: its labels are in memory, its images are read on request."""

    labels: Indices  # [N], indices in the class list

    def __len__(self) -> int: ...

    def __getitem__(self, request: Request) -> Batch: ...

    def take(self, rows: Indices) -> Self:
        """The split of these rows, indexed anew from 0."""

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        """The same images with the augmentation of single samples, drawn from the run's seed."""
