"""What travels from the sampler to a data set (Request) and from there to the device (Batch)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


class Request(NamedTuple):
    """Which samples make up the next batch of this process: what `EpochBatches` yields and a set's `__getitem__` takes."""

    epoch: int
    indices: Indices  # [B], places in the split; empty where a short global batch leaves nothing for this rank
    whole: int  # samples in the global batch that this one is a part of


class Batch(NamedTuple):
    """One batch; a plain tuple, so that Lightning moves it and DataLoader pins it."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], place of each image in its split
    epoch: int
    whole: int  # samples in the global batch this one is a part of, the skipped ones among them
    bad: tuple[str, ...] = ()  # paths of the images that could not be read and were left out (on_bad_image: skip)
