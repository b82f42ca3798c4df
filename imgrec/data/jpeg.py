"""JPEG data to pixels, equal to PIL's, in less of its time."""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from imgrec.errors import ConfigError, DataError, first_line

SIGNATURE = b"\xff\xd8\xff"
# How libjpeg's warnings begin where data is lost, which decoders fill with gray; it also warns of odd metadata.
LOST_DATA = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
START_OF_SCAN, APP1, APP2 = (
    0xDA,
    0xE1,
    0xE2,
)  # markers; EXIF and XMP data are in APP1, a colour profile or that there are more pictures in APP2
END_OF_IMAGE = 0xD9
_ALONE = (0x00, *range(0xD0, 0xDA))  # markers without a length: escaped bytes, restarts, start and end of an image
_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd7]")  # but those without a segment: stuffed bytes and restarts
LEAST_LEFT = 8  # rows without which decoding takes less time
SEQUENTIAL = (0xC0, 0xC1)  # markers of a frame that is coded row by row, with the usual Huffman codes
# What libjpeg says of the rows behind those that were decoded; of several warnings it passes on the first.
_LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0x")
# In the order of their speed: 1.00, 1.11, 1.19 and 1.32 times the time for photographs of 91 KB (2-core EPYC, torchvision 0.29.1,
# torchcodec 0.17, Pillow 13, medians of 5). The first is always installed.
FASTEST = "simplejpeg"
Decoder = Literal["auto", "simplejpeg", "torchvision", "torchcodec", "pil"]
Decode = Callable[[bytes, Literal["RGB", "GRAY"]], Any]  # to uint8 [C, H, W]


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
    return Header(height, width, colorspace, has_segment(content, APP1))


def has_segment(content: bytes, wanted: int) -> bool:
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


def count_segments(content: bytes, most: int) -> int:
    """What Pillow reads one by one before the pixels, `most` + 1 where there is more: segments, padding, bytes that are neither."""
    at, count = 2, 0
    while at + 4 <= len(content) and count <= most:
        marker = content[at + 1] if content[at] == 0xFF else None
        if marker == START_OF_SCAN:
            break
        count += 1
        if marker is None or marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4]))  # Pillow has read the length, whatever it says
    return count


def count_scans(content: bytes, unimportant: int) -> int:
    """Scans of a JPEG, each of which is decoded over the whole image; 0 where there are certainly not more than `unimportant`."""
    if content.count(bytes([0xFF, START_OF_SCAN])) <= unimportant:  # a thousandth of the walk's time
        return 0
    scans, at = 0, 2
    while found := _MARKER.search(content, at):
        marker, at = content[found.end() - 1], found.end()
        if marker == END_OF_IMAGE:  # what follows is of another file, such as a phone's film
            break
        scans += marker == START_OF_SCAN
        at += int.from_bytes(content[at : at + 2])
    return scans


def check_decoder(decoder: Decoder) -> None:
    """ConfigError for one that is not installed."""
    if decoder == "torchcodec" and find_spec(decoder) is None:
        raise ConfigError(f"data.decoder={decoder}: it is not installed. Type: pip install {decoder}, or set data.decoder=auto.")


def decode_jpeg(
    content: bytes, header: Header, channels: int, decoder: Decoder = "auto", rows: int | None = None
) -> NDArray[np.uint8] | None:
    """uint8 [H, W] or [H, W, 3] of 1 or 3 channels; None for the rare kinds that only PIL reads, what another decoder refuses, and "pil".

    rows: how many are needed; below them there may be anything, and damage may not be noticed. DataError where data is missing:
    libjpeg warns of it, which simplejpeg alone passes on.
    """
    if decoder == "pil":
        return None
    if header.colorspace in ("CMYK", "YCCK"):
        _decode_by_simplejpeg(content, "CMYK")  # for its warnings; the colours are PIL's
        return None
    colorspace: Literal["RGB", "GRAY"] = "GRAY" if channels == 1 and header.colorspace == "Gray" else "RGB"
    # The others turn a picture by its EXIF data, as a part of which PIL has another view.
    if decoder in ("auto", FASTEST) or header.has_metadata:
        pixels = None if rows is None else _decode_rows(content, header, colorspace, rows)
        pixels = _decode_by_simplejpeg(content, colorspace) if pixels is None else pixels
    else:
        try:
            pixels = _other_decoder(decoder)(content, colorspace).permute(1, 2, 0).numpy()
        except RuntimeError:  # which names a place in C++; PIL says what is wrong
            return None
    if pixels is not None and channels == 1 and colorspace == "RGB":  # not the JPEG's own luma: a PIL image has only its colours
        return np.array(Image.fromarray(pixels).convert("L"))
    return pixels


def _decode_by_simplejpeg(content: bytes, colorspace: str) -> NDArray[np.uint8] | None:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, colorspace)
    except ValueError as error:
        if str(error).startswith(LOST_DATA):
            raise DataError(f"it is truncated or damaged ({first_line(error)})") from error
        return None
    return pixels


def _decode_rows(content: bytes, header: Header, colorspace: str, rows: int) -> NDArray[np.uint8] | None:
    """uint8 [H, W, C] of which the upper rows are decoded, as of a lower picture; None where that is no use, or something is wrong."""
    rows += 1  # the last may take some of its colours from the next one, see h2v2_fancy_upsample of libjpeg-turbo
    frame = _frame(content)
    if frame is None or rows + LEAST_LEFT > header.height:
        return None
    lower = bytearray(content)
    lower[frame + 5 : frame + 7] = rows.to_bytes(2)
    pixels = np.empty((header.height, header.width, 1 if colorspace == "GRAY" else 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(lower, colorspace, buffer=pixels[:rows])
    except ValueError as error:
        if not _LEFT_OVER.match(str(error)):
            return None
    return pixels


def _frame(content: bytes) -> int | None:
    """Where the segment with the height begins; None where rows do not follow one another in a single scan."""
    at, frame = 2, None
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in SEQUENTIAL:
            frame = at
        elif marker == START_OF_SCAN:
            return frame if frame is not None and content[at + 4] == content[frame + 9] else None
        at += 1 if marker == 0xFF else 2 + (content[at + 2] << 8 | content[at + 3])
    return None


@cache
def _other_decoder(decoder: Literal["torchvision", "torchcodec"]) -> Decode:
    if decoder == "torchcodec":
        from torchcodec.decoders import decode_jpeg as decode_by_torchcodec

        return lambda content, colorspace: decode_by_torchcodec(content, mode=colorspace)
    from torchvision.io import image

    # Not image.decode_jpeg, which warns each time that it will go.
    modes = {"RGB": image.ImageReadMode.RGB.value, "GRAY": image.ImageReadMode.GRAY.value}
    return lambda content, colorspace: torch.ops.image.decode_jpeg(
        torch.frombuffer(bytearray(content), dtype=torch.uint8), modes[colorspace], False
    )
