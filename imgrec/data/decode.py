"""From an image file to uint8 [C, S, S]: the same code for training, evaluation and prediction."""

import ctypes
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from imgrec.config.named_values import Decoder
from imgrec.data import jpeg
from imgrec.data.pieces import check_pieces, open_counted
from imgrec.errors import DataError, first_line, unreadable
from imgrec.files import IMAGE_FORMATS

Rows = Callable[[int, int], int]  # how many of the upper rows are needed of a picture of this height and width
MOST_PIXELS = 2 * int(Image.MAX_IMAGE_PIXELS or 0)  # above twice its limit PIL opens no file
FORMATS = tuple(IMAGE_FORMATS)
MAX_ASPECT = 32  # of the sides; images with a larger ratio are cropped before they are resized
METADATA_BYTES = 2**26  # an image file may have besides its pixels; a JPEG is read in one piece
# By EXIF's orientation; from 5 on the picture is transposed first.
MIRRORED_AXES: dict[Any, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
# Suggested for data.scale: the first that holds a picture's values.
USUAL_SCALES = ((0, 1), (-1, 1), (0, 255), (0, 4095), (0, 65535))


def _silence_libtiff() -> None:
    """libtiff prints what is wrong with a file on stderr, into the bar or a table, and PIL raises an error besides."""
    folder = Path(Image.__file__).parent
    of_wheels = (*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*"))  # for Linux, for macOS
    for library in of_wheels:
        ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


_silence_libtiff()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its messages are printed where no program configures logging


class Preprocessing(TypedDict):
    """How any image becomes an input of the network; plain data, as it is stored in a checkpoint."""

    image_size: int  # pixels, both sides
    channels: int
    mean: list[float]  # per channel, of values in [0, 1]
    std: list[float]
    resize: Literal["squash", "crop"]
    crop_share: float
    interpolation: Literal["bilinear", "bicubic"]
    max_pixels: int
    scale: list[float] | None


class ScaleError(DataError):
    """A whole picture whose values need data.scale before they are gray levels: a setting is missing, no file is bad."""


def load_image(path: str, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, S, S] of an image file, preprocessed as in evaluation; DataError for an unreadable file."""
    return fit_to_size(decode(path, preprocessing), preprocessing)


def decode(path: str, preprocessing: Preprocessing, decoder: Decoder = "auto", rows: Rows | None = None) -> Tensor:
    """uint8 [C, H, W] of an image file, as `from_pil` makes it of the opened file; DataError with the path of a file without.

    decoder: of JPEG data, all with the same pixels. rows: below them there may be anything, and damage may not be noticed.
    """
    with _naming_image(path, preprocessing["max_pixels"]):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise DataError("it is no file")
        if not status.st_size:
            raise DataError("the file is empty")
        with open(path, "rb", buffering=0) as file:
            pixels = _jpeg_pixels(file, status.st_size, preprocessing, decoder, rows)
            if pixels is not None:
                return pixels
            check_pieces(file)  # reads few bytes here and there, for each of which a buffer would read 8 KB
        with open(path, "rb") as buffered:
            return _decode_by_pil(buffered, preprocessing)


def decode_bytes(
    content: bytes, path: str, preprocessing: Preprocessing, decoder: Decoder = "auto", rows: Rows | None = None
) -> Tensor:
    """`decode` of the content of an image file; path: what errors call it."""
    with _naming_image(path, preprocessing["max_pixels"]):
        if not content:
            raise DataError("the file is empty")
        pixels = _jpeg_pixels(BytesIO(content), len(content), preprocessing, decoder, rows)
        if pixels is not None:
            return pixels
        check_pieces(BytesIO(content))
        return _decode_by_pil(BytesIO(content), preprocessing)


@contextmanager
def _naming_image(path: str, max_pixels: int) -> Iterator[None]:
    """A DataError with the path of an image for whatever is raised while it is read."""
    try:
        yield
    except UnidentifiedImageError as error:
        reason = "it is damaged from its start on, or of a format that PIL does not know"
        raise DataError(f"{path} cannot be read: {reason}.") from error
    except Image.DecompressionBombError as error:
        limit = f"data.max_pixels={max_pixels}, and than the {MOST_PIXELS:,} that PIL opens"
        raise DataError(f"{path} cannot be read: it has more pixels than {limit}. Make it smaller.") from error
    except ScaleError as error:
        raise ScaleError(f"{path}: {error}") from error
    except MemoryError as error:  # without a text; PIL's parsers raise it too, for a damaged file that claims to be large
        raise DataError(f"{path} cannot be read: the memory does not hold it. Make it smaller.") from error
    except Exception as error:  # PIL's parsers raise OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.strerror is not None:
            raise unreadable(path, error) from error
        raise DataError(f"{path} cannot be read: {first_line(error)}.") from error


def _decode_by_pil(file: BinaryIO, preprocessing: Preprocessing) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about unusual metadata
        with open_counted(file, FORMATS) as image:
            return from_pil(image, preprocessing)


def _jpeg_pixels(
    file: FileIO | BytesIO, size: int, preprocessing: Preprocessing, decoder: Decoder, rows: Rows | None
) -> Tensor | None:
    """The pixels of a JPEG in about half of PIL's time; None for other formats and for the rare kinds that only PIL reads."""
    if file.read(3) != jpeg.SIGNATURE:
        return None
    file.seek(0)
    content = file.read(min(size, METADATA_BYTES))  # `read` allocates what it is asked for
    header = jpeg.read_header(content)
    if header is not None:
        _check_size(header.width, header.height, preprocessing["max_pixels"])
        if size > METADATA_BYTES:
            content += file.read(min(size - METADATA_BYTES, 8 * header.width * header.height))
    if header is None or header.segments.frame is None:
        jpeg.check_scans(content)
    if header is None:
        return None
    needed = None if rows is None or header.has_metadata else rows(header.height, header.width)
    pixels = jpeg.decode_jpeg(content, header, preprocessing["channels"], decoder, needed)
    if pixels is None:
        return None
    if not header.has_metadata:
        return _as_tensor(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(content), formats=("JPEG",)) as image:
            return _upright(pixels, image)


def from_pil(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] of a PIL image, upright, 1 gray or 3 RGB, channels last in memory.

    Values of more than 8 bits become gray levels by data.scale, see `to_bytes`. Raises what PIL raises for damaged pixels.
    """
    _check_size(*image.size, preprocessing["max_pixels"])
    original = image
    sixteen_bits = ";16" in repr(getattr(image, "tile", None))  # PIL forgets it when it loads the pixels
    image.load()  # before the orientation is read, as that may stand behind the pixels, and PIL turns a TIFF itself
    mode = "L" if preprocessing["channels"] == 1 else "RGB"
    if image.mode[0] in "IF":
        image = Image.fromarray(to_bytes(np.asarray(image), preprocessing["scale"]))
    if image.mode in ("La", "RGBa"):  # premultiplied, which PIL converts in two steps only
        image = image.convert(image.mode.upper())
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    if sixteen_bits and original.mode[0] not in "IF":
        _check_upper_bytes(int(pixels.max()), preprocessing["scale"])
    return _upright(pixels, original)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """DataError for more than `max_pixels`, by the header, so that nothing of that size was allocated."""
    count = width * height
    if count > max_pixels:
        key = f", or train with data.max_pixels={count}; predict and explain take max_pixels={count}" * (count <= MOST_PIXELS)
        raise DataError(f"it has {width:,}x{height:,} pixels, more than data.max_pixels={max_pixels}. Make it smaller{key}")


def to_bytes(values: NDArray[Any], scale: list[float] | None) -> NDArray[np.uint8]:
    """Gray levels of integers of more than 8 bits, or floats: 256 equal steps from black to white, `scale`; clipped outside.

    Without a scale integers have 16 bits. ScaleError for floats then, and for values which fit into 12 bits or not into 16.
    """
    low, high = values.min(), values.max()
    if np.isnan(low):
        raise DataError("it holds values that are not a number")
    whole = values.dtype.kind in "iu"
    if scale is None and not (whole and low >= 0 and (high == 0 or 4096 <= high <= 65535)):
        usual = next((pair for pair in USUAL_SCALES if pair[0] <= low and high <= pair[1]), (f"{low:g}", f"{high:g}"))
        kind = f"{values.dtype.itemsize * 8}-bit {'integers' if whole else 'floats'}"
        raise ScaleError(
            f"its values are {kind} from {low:g} to {high:g}, and which are black and white is not known. "
            f"Save it with 8 bits, or train with data.scale=[BLACK,WHITE], such as data.scale=[{usual[0]},{usual[1]}]."
        )
    black, white = (0, 65535) if scale is None else scale
    levels = (values.astype(np.float64) - black) * (256 / (white - black + whole))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _check_upper_bytes(high: int, scale: list[float] | None) -> None:
    """ScaleError for 16-bit colour, of which PIL reads the upper 8 bits, `high` at most, where these are not the picture."""
    if scale not in (None, [0, 65535]) or 0 < high < 16:
        raise ScaleError(
            f"its colours have 16 bits and its values are below {(high + 1) * 256:,}, but only the upper 8 bits of colours are read. "
            "Convert it to 8 bits."
        )


def _upright(pixels: NDArray[np.uint8], image: Image.Image) -> Tensor:
    """uint8 [H, W] or [H, W, C] -> [C, H, W], turned by the orientation in the image's EXIF or XMP data."""
    orientation = read_orientation(image)
    if orientation in MIRRORED_AXES:
        pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
        pixels = np.ascontiguousarray(np.flip(pixels, MIRRORED_AXES[orientation]))
    return _as_tensor(pixels)


def read_orientation(image: Image.Image) -> object:
    """What its EXIF or XMP data says, None where they say nothing. Of a PNG that has none of them PIL decodes the pixels first."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of PIL's parsers; metadata that cannot be read says nothing of the pixels
        return None


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W] or [H, W, C] -> [C, H, W]."""
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def is_constant(image: Tensor) -> bool:
    """Whether all pixels of uint8 [C, H, W] are the same. Two corners of most are not."""
    pixels = image.numpy()  # whose comparisons of a few values take a third of torch's time
    return bool(pixels[0, 0, 0] == pixels[0, -1, -1]) and bool((pixels == pixels[:, :1, :1]).all())


def resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 [C, H, W] -> [C, height, width], with antialiasing, as torchvision's v2.functional.resize; bilinear within two gray levels of PIL."""
    if image.shape[1:] == (height, width):
        return image
    # Not image[None]: torch takes an image for channels-last by the stride of the batch too, and needs twice the time otherwise.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(batch, (height, width), mode=interpolation, antialias=True)[0]


def fit_to_size(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [C, H, W] -> [C, S, S]: squashed, or the shorter side resized to S / crop_share, then a center crop."""
    size, interpolation = preprocessing["image_size"], preprocessing["interpolation"]
    if preprocessing["resize"] == "squash":
        return resize(image, size, size, interpolation)
    image = resize_shorter_side(image, max(size, round(size / preprocessing["crop_share"])), interpolation)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])  # as F.center_crop, which takes 10 us more
    return image[:, top : top + size, left : left + size]


def resize_shorter_side(image: Tensor, shortest: int, interpolation: str) -> Tensor:
    """uint8 [C, H, W] resized to `shortest` pixels of its shorter side; of a strip only the middle."""
    # As only the middle is kept later, the rest of a strip is not resized: 1x20000 pixels would become 4 GB.
    longest = MAX_ASPECT * min(image.shape[-2:])
    if max(image.shape[-2:]) > longest:
        image = F.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
    height, width = (int(shortest * side / min(image.shape[-2:])) for side in image.shape[-2:])
    return resize(image, height, width, interpolation)
