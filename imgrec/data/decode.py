"""From an image file to uint8 [C, S, S]: the same code for training, evaluation and prediction."""

import warnings
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
    """uint8 [C, S, S] of an image file, preprocessed as in evaluation;
    DataError with the path for an unreadable file.
    """
    return fit_to_size(decode(path, preprocessing["channels"]), preprocessing)


def decode(path: str, channels: int) -> Tensor:
    """uint8 [C, H, W], upright (EXIF), 1 gray or 3 RGB, channels last in memory;
    DataError for a damaged or unknown file.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not len(content):
        raise DataError(f"{path} cannot be read: the file is empty.")
    if decode_image is not None and content[:4].tobytes().startswith((JPEG, PNG)):
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                image: Tensor = decode_image(torch.from_numpy(content), mode, apply_exif_orientation=True)
        except RuntimeError:
            pass  # PIL reads some of these files, and its errors are clearer for the others
        else:
            # A 16-bit PNG is decoded to uint16, for which torch has no shift.
            return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)
    return _decode_pil(path, channels)


def _decode_pil(path: str, channels: int) -> Tensor:
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # about unusual metadata
            pixels = from_pil(opened, channels)
    # PIL's parsers raise OSError, SyntaxError, struct.error, ValueError, DecompressionBombError, ...
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "neither torchvision nor PIL knows this format" if unknown else first_line(error)
        raise DataError(f"{path} cannot be read: {reason}.") from error
    return pixels


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """uint8 [C, H, W] of a PIL image, upright (EXIF), 1 gray or 3 RGB;
    raises any error of PIL while it reads the pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; PIL's conversion would clip them
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).astype(np.uint8))
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def fit_to_size(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] -> [C, S, S]: squashed, or the shorter side resized to S / crop_share, then a center crop."""
    size = preprocessing["image_size"]
    if preprocessing["resize"] == "squash":
        return resize(image, size, size)
    # Only the middle is kept, so the rest of a strip is not resized: 1x20000 pixels would become 4 GB.
    longest = MAX_ASPECT * min(image.shape[-2:])
    if max(image.shape[-2:]) > longest:
        image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
    height, width = image.shape[-2:]
    short = max(size, round(size / preprocessing["crop_share"]))
    # The longer side is rounded down, as torchvision's Resize does.
    tall, wide = (int(short * height / width), short) if height > width else (short, int(short * width / height))
    image = resize(image, tall, wide)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return image[:, top : top + size, left : left + size]


def crop_resized(image: Tensor, box: tuple[int, int, int, int], height: int, width: int) -> Tensor:
    """uint8 [C, H, W] -> [C, height, width]: the box (top, left, height, width), squashed."""
    top, left, tall, wide = box
    return resize(image[:, top : top + tall, left : left + wide], height, width)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [C, H, W] -> [C, height, width], bilinear with antialiasing, within two gray levels of PIL."""
    if image.shape[-2:] == (height, width):
        return image
    resized: Tensor = F.resize(image, [height, width], antialias=True)
    return resized
