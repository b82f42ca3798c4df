"""Batches of image files that are predicted; one that cannot be read has an error in its place."""

import os
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.data.decode import Preprocessing, load_image
from imgrec.errors import DataError


class FileBatch(NamedTuple):
    images: Tensor  # uint8 [n, C, S, S] of the files that could be read
    errors: list[str | None]  # of every file


class FileBatches:
    """The batches of image files for a Loader."""

    def __init__(self, paths: NDArray[np.bytes_], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = paths, preprocessing

    def __getitem__(self, indices: range) -> FileBatch:
        size, channels = self.preprocessing["image_size"], self.preprocessing["channels"]
        images = torch.empty((len(indices), channels, size, size), dtype=torch.uint8)
        errors: list[str | None] = []
        for index in indices:
            try:
                images[errors.count(None)] = load_image(os.fsdecode(self.paths[index]), self.preprocessing)
                errors.append(None)
            except DataError as error:
                errors.append(str(error))
        return FileBatch(images[: errors.count(None)], errors)
