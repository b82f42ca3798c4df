"""From an image file to uint8 [C, S, S]: the same code for training, evaluation and prediction."""

import warnings
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imgrec.errors import DataError, first_line

try:  # torchvision 0.29 says that decoding will move to TorchCodec; where it is gone, PIL decodes everything, at half the speed
    from torchvision.io import ImageReadMode, decode_image
except ImportError:
    decode_image = None

# What torchvision decodes faster than PIL, to the same bytes; its GIF and WebP lack gray, and the rest it does not know.
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
MOST_ASPECT = 32  # longer side to shorter; what is longer is cut before it is resized


class Preprocessing(TypedDict):
    """From any picture to what the network was trained on, as plain data for a checkpoint."""

    image_size: int  # pixels, both sides
    channels: int
    mean: list[float]  # per channel, of values in [0, 1]
    std: list[float]
    resize: Literal["squash", "crop"]
    crop_share: float


def load_image(path: str, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, S, S] of any image file, as in evaluation; DataError with the path for what cannot be read."""
    return fit_to_size(decode(path, preprocessing["channels"]), preprocessing)


def decode(path: str, channels: int) -> Tensor:
    """uint8 [C, H, W], upright (EXIF), 1 gray or 3 RGB, channels last in memory; DataError for what is no whole image."""
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
            pass  # PIL reads some of what it refuses, and says better what is wrong with the rest
        else:
            # A 16-bit PNG arrives as uint16, which knows no shift in torch.
            return image if image.dtype == torch.uint8 else (image.to(torch.int32) >> 8).to(torch.uint8)
    return _decode_pil(path, channels)


def _decode_pil(path: str, channels: int) -> Tensor:
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # odd metadata; what matters raises
            pixels = from_pil(opened, channels)
    # PIL raises whatever its parsers stumble on: OSError, SyntaxError, struct.error, ValueError, DecompressionBombError, ...
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "neither torchvision nor PIL knows this format" if unknown else first_line(error)
        raise DataError(f"{path} cannot be read: {reason}.") from error
    return pixels


def from_pil(image: Image.Image, channels: int) -> Tensor:
    """uint8 [C, H, W] of a PIL image, upright (EXIF), 1 gray or 3 RGB; raises what PIL raises while it reads the pixels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which PIL's own conversion would clip
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).astype(np.uint8))
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def fit_to_size(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] -> [C, S, S]: squashed, or the shorter side resized to S / crop_share and the middle taken."""
    size = preprocessing["image_size"]
    if preprocessing["resize"] == "squash":
        return resize(image, size, size)
    # Only the middle is kept: of a strip the rest is not resized, or 1x20000 pixels would become 4 GB on the way.
    longest = MOST_ASPECT * min(image.shape[-2:])
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
    """uint8 [C, H, W] -> [C, height, width], bilinear with antialiasing, within a grey level or two of PIL."""
    if image.shape[-2:] == (height, width):
        return image
    resized: Tensor = F.resize(image, [height, width], antialias=True)
    return resized
