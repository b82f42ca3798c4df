"""A Request goes from the sampler to the data set, and a Batch from there to the device."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Indices = NDArray[np.int64]


class Request(NamedTuple):
    """The samples of the next batch of this rank: yielded by `EpochBatches`, the argument of `ImageSet.__getitem__`."""

    epoch: int
    # [B], the index in the split + len(split) * its earlier occurrences in this epoch, which are 0 unless `sampling`
    # repeats images. Empty where a short global batch has no samples for this rank.
    indices: Indices
    whole: int  # samples in the global batch of which this is a part
    side: int | None = None  # pixels of the images that are read one by one; None: data.image_size


class Requests(Protocol):
    """The requests of an epoch, one after another."""

    def __iter__(self) -> Iterator[Request]: ...

    def __len__(self) -> int: ...


class Batch(NamedTuple):
    """One batch; a tuple, so that Lightning can move it to the device and DataLoader can pin its memory."""

    images: "Tensor"  # uint8 [B, C, H, W]
    labels: "Tensor"  # int64 [B]
    indices: "Tensor"  # int64 [B], as in Request: the draws of each image depend on it
    partners: "Tensor"  # int64 [B], row in this batch of the image that each is mixed with, see mixup.py
    epoch: int
    whole: int  # samples in the global batch of which this is a part, with the skipped ones
    bad: tuple[str, ...] = ()  # paths of unreadable images, which were skipped (on_bad_image: skip)
    constant: tuple[str, ...] = ()  # paths of images whose pixels are all the same
