"""JPEG data to pixels, equal to PIL's, in about half of its time."""

from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from imgrec.errors import DataError, first_line

SIGNATURE = b"\xff\xd8\xff"
# How libjpeg's warnings begin where data is lost, which decoders fill with gray; it also warns of odd metadata.
LOST_DATA = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
START_OF_SCAN, APP1 = 0xDA, 0xE1  # markers; EXIF and XMP data are in APP1
Decoder = Literal["auto", "simplejpeg", "torchvision", "torchcodec", "pil"]


class Header(NamedTuple):
    """What stands before the pixels."""

    height: int
    width: int
    colorspace: str  # simplejpeg's name
    has_metadata: bool  # EXIF or XMP data, which may turn the picture


def read_header(content: bytes) -> Header | None:
    """None for what libjpeg-turbo's simple interface does not read, such as unusual chroma subsampling."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return Header(height, width, colorspace, _has_segment(content, APP1))


def _has_segment(content: bytes, wanted: int) -> bool:
    """Whether a segment with this marker stands before the pixels; also where the segments cannot be followed."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == START_OF_SCAN:
            return False
        if marker == wanted:
            break
        at += 1 if marker == 0xFF else 2 + (content[at + 2] << 8 | content[at + 3])
    return True


def decode(content: bytes, header: Header, channels: int, decoder: Decoder) -> NDArray[np.uint8] | None:
    """uint8 [H, W] or [H, W, 3] of 1 or 3 channels; None for the rare kinds that only PIL reads.

    DataError where data is missing: PIL does not tell what libjpeg warns of.
    """
    colorspace = {"Gray": "GRAY" if channels == 1 else "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}.get(header.colorspace, "RGB")
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, colorspace)
    except ValueError as error:
        if str(error).startswith(LOST_DATA):
            raise DataError(f"it is truncated or damaged ({first_line(error)})") from error
        return None
    if colorspace == "CMYK":
        return None
    if channels == 1 and colorspace == "RGB":  # not the JPEG's own luma: a PIL image has only its colours
        return np.array(Image.fromarray(pixels).convert("L"))
    return pixels
