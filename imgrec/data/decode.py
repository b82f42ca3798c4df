"""From an image file to uint8 [C, S, S]: the same code for training, evaluation and prediction."""

import warnings
from contextlib import suppress
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imgrec.errors import DataError, first_line

try:  # torchvision 0.29 announces that decoding moves to TorchCodec; without it PIL decodes everything, at half the speed
    from torchvision.io import ImageReadMode, decode_image
except ImportError:
    decode_image = None

# Formats that torchvision decodes faster than PIL, to the same bytes. Its GIF and WebP decoders have no gray mode.
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
MAX_ASPECT = 32  # of the sides; images with a larger ratio are cropped before they are resized


class Preprocessing(TypedDict):
    """How any image becomes an input of the network; plain data, as it is stored in a checkpoint."""

    image_size: int  # pixels, both sides
    channels: int
    mean: list[float]  # per channel, of values in [0, 1]
    std: list[float]
    resize: Literal["squash", "crop"]
    crop_share: float


def load_image(path: str, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, S, S] of an image file, preprocessed as in evaluation; DataError for an unreadable file."""
    return fit_to_size(decode(path, preprocessing["channels"]), preprocessing)


def decode(path: str, channels: int) -> Tensor:
    """uint8 [C, H, W], upright (EXIF), 1 gray or 3 RGB, channels last in memory; DataError with the path of a bad file."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not len(content):
        raise DataError(f"{path} cannot be read: the file is empty.")
    if decode_image is not None and content[:4].tobytes().startswith((JPEG, PNG)):
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        # PIL reads some of the files that torchvision refuses, and its errors are clearer for the others.
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            image: Tensor = decode_image(torch.from_numpy(content), mode, apply_exif_orientation=True)
            # A 16-bit PNG is decoded to uint16, for which torch has no shift.
            return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # about unusual metadata
            return from_pil(opened, channels)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} cannot be read: neither torchvision nor PIL knows this format.") from error
    except Exception as error:  # PIL's parsers raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise DataError(f"{path} cannot be read: {first_line(error)}.") from error


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """uint8 [C, H, W] of a PIL image, upright (EXIF), 1 gray or 3 RGB; raises what PIL raises for damaged pixels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; PIL's conversion would clip them
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).astype(np.uint8))
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def fit_to_size(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] -> [C, S, S]: squashed, or the shorter side resized to S / crop_share, then a center crop.

    Bilinear with antialiasing, within two gray levels of PIL.
    """
    size = preprocessing["image_size"]
    if preprocessing["resize"] == "squash":
        squashed: Tensor = F.resize(image, [size, size])
        return squashed
    # Only the middle is kept, so the rest of a strip is not resized: 1x20000 pixels would become 4 GB.
    longest = MAX_ASPECT * min(image.shape[-2:])
    if max(image.shape[-2:]) > longest:
        image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
    image = F.resize(image, [max(size, round(size / preprocessing["crop_share"]))])
    top, left = (round((side - size) / 2) for side in image.shape[-2:])  # as F.center_crop, which takes 10 us more
    return image[:, top : top + size, left : left + size]
