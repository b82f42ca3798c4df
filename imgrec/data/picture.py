"""A picture in memory, as Python programs have them, as uint8 [C, H, W]."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgrec.data.decode import Preprocessing, from_pil
from imgrec.data.in_memory import to_channels
from imgrec.errors import DataError, first_line

TAKEN = (
    "uint8 arrays [H, W], [H, W, 1] or [H, W, 3], uint8 tensors [1, H, W] or [3, H, W], with values from 0 to 255, and PIL images"
)


def picture_pixels(picture: object, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] of a PIL image, an array or a tensor, with the channels of the preprocessing; DataError for other things."""
    if isinstance(picture, Image.Image):
        try:
            return from_pil(picture, preprocessing)
        except Exception as error:  # PIL reads lazily and raises any exception of its parsers, see decode
            raise DataError(f"a PIL image cannot be read: {first_line(error)}.") from error
    pixels = _planes(picture)
    if pixels is None or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        raise DataError(
            f"an image is {describe_picture(picture)}; expected {TAKEN}. A batch is an array [B, H, W, C] or a tensor [B, C, H, W]."
        )
    return to_channels(pixels[None].cpu(), preprocessing["channels"])[0]


def to_picture(pixels: Tensor) -> Image.Image:
    """The PIL image of uint8 [C, H, W], 1 gray or 3 RGB."""
    planes = pixels.movedim(0, -1).numpy()
    return Image.fromarray(planes[..., 0] if len(pixels) == 1 else planes)


def is_gray_batch(images: object) -> bool:
    """Whether it is an array [B, H, W]. With B=3, and as a tensor, it may be one image [C, H, W], and is no batch."""
    return isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[0] != 3 and images.shape[2] not in (1, 3)


def describe_picture(picture: object) -> str:
    """'uint8 [8, 8]' or 'of type int'."""
    if isinstance(picture, np.ndarray | Tensor):
        return f"{str(picture.dtype).removeprefix('torch.')} {list(picture.shape)}"
    return f"of type {type(picture).__name__}"


def _planes(picture: object) -> Tensor | None:
    """uint8 [C, H, W] of an array or a tensor, where it is uint8."""
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        array = torch.from_numpy(np.ascontiguousarray(picture))
        return array[None] if array.ndim == 2 else array.movedim(-1, 0)
    return picture if isinstance(picture, Tensor) and picture.dtype == torch.uint8 else None
