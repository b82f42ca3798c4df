"""What a split is to the loaders: labels in memory, and batches of images on request."""

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Indices, Request
from imgrec.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ImageSet(Protocol):
    """A split: its labels are in memory, its images are read on request."""

    labels: Indices  # [N], indices in the class list

    @property
    def names(self) -> NDArray[np.bytes_] | None:
        """[N], what an image is called wherever it stands in the order; None: images have no names."""

    @property
    def groups(self) -> NDArray[np.bytes_] | None:
        """[N], what an image belongs to (a patient, a video), whose images are all cut into one split; None: each to itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, request: Request) -> Batch: ...

    def take(self, rows: Indices) -> Self:
        """The split of these rows, indexed anew from 0."""

    def content(self) -> Indices:
        """What changes with the images, to be compared later: int64 [N, F], figures of each (-1: not known), or [1, F] of all."""

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        """The same images with the augmentation of single samples, drawn from the run's seed."""


def read_again(images: ImageSet, rows: Indices) -> "Tensor":
    """uint8 [N, C, S, S] of rows that were read before; DataError where one is gone, also if the run leaves unreadable images out."""
    batch = images[Request(0, rows, len(rows))]
    if batch.bad:
        raise DataError(f"{batch.bad[0]} could be read before, and cannot be now. Put it back, or start the same command again.")
    return batch.images
