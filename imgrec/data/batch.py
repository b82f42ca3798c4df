"""What travels from the sampler to a data set (Request) and from there to the device (Batch)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


class Request(NamedTuple):
    """Which samples make up the next batch of this process: what `EpochBatches` yields and a set's `__getitem__` takes."""

    epoch: int
    # [B], codes: place in the split + len(split) x times that the epoch has had it before (only where `sampling` repeats images);
    # empty where a short global batch leaves nothing for this rank.
    indices: Indices
    whole: int  # samples in the global batch that this one is a part of


class Batch(NamedTuple):
    """One batch; a plain tuple, so that Lightning moves it and DataLoader pins it."""

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], code of each image as in Request: all that is drawn for it follows from the code
    partners: Tensor  # int64 [B], place in this batch of the image that each is mixed with (see mixing.py)
    epoch: int
    whole: int  # samples in the global batch this one is a part of, the skipped ones among them
    bad: tuple[str, ...] = ()  # paths of the images that could not be read and were left out (on_bad_image: skip)
