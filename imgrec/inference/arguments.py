"""The arguments of a Predictor that are given from Python."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgrec.config.annotations import is_number
from imgrec.data.decode import Preprocessing, fit_to_size, load_image
from imgrec.data.picture import describe_picture, is_gray_batch, picture_pixels
from imgrec.errors import ConfigError, DataError
from imgrec.inference.device import check_memory

Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
BATCH_SIZE = 64  # images


def listed_pictures(images: object) -> Sequence[Picture]:
    """A sequence of one picture or several; DataError for what is neither."""
    single = isinstance(images, np.ndarray | Tensor) and images.ndim != 4 and not is_gray_batch(images)
    if single or isinstance(images, str | os.PathLike | Image.Image):
        return cast(Sequence[Picture], [images])
    if not isinstance(images, Iterable):
        raise DataError(
            f"images are {describe_picture(images)}; expected a path, a PIL image, an array or a tensor, or a list of them."
        )
    return cast(Sequence[Picture], images if isinstance(images, Sequence | np.ndarray | Tensor) else list(images))


def picture_batches(images: Picture | Sequence[Picture], preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """uint8 [B, C, S, S] of up to `batch_size` pictures, fitted to the size of the preprocessing."""
    pictures = listed_pictures(images)
    check_count("batch_size", batch_size)
    check_memory(min(batch_size, len(pictures)), preprocessing)
    for start in range(0, len(pictures), batch_size):
        rows = range(start, min(start + batch_size, len(pictures)))
        yield torch.stack([_fitted(pictures[row], preprocessing) for row in rows])


def _fitted(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, S, S] of any picture."""
    if isinstance(picture, str | os.PathLike):
        return load_image(os.fspath(picture), preprocessing)
    return fit_to_size(picture_pixels(picture, preprocessing), preprocessing)


def check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value}: expected an integer, 1 or more. Set {name}={1 if name == 'top_k' else BATCH_SIZE}.")


def check_workers(num_workers: object) -> None:
    if num_workers != "auto" and (not is_number(num_workers) or not isinstance(num_workers, int) or num_workers < 0):
        raise ConfigError(f"num_workers={num_workers}: expected an integer, 0 or more, or auto. Set num_workers='auto'.")
