"""JPEG data to pixels, equal to PIL's, in less of its time."""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from imgrec.config.named_values import Decoder
from imgrec.errors import ConfigError, DataError, first_line

SIGNATURE = b"\xff\xd8\xff"
# How libjpeg's warnings begin where data is lost, which decoders fill with gray; it also warns of odd metadata.
LOST_DATA = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9  # markers
# Of EXIF and XMP data; of a colour profile, or that there are more pictures; of Photoshop.
APP1, APP2, APP13 = 0xE1, 0xE2, 0xED
_ALONE = (0x00, *range(0xD0, 0xDA))  # markers without a length: escaped bytes, restarts, start and end of an image
_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd7]")  # but those without a segment: stuffed bytes and restarts
LEAST_LEFT = 8  # rows without which decoding takes less time
# Encoders write up to about 14; each is decoded over the whole image, 10 ms for 25 megapixels, and takes 45 bytes where nothing
# changes: a file of 16 MB was an hour of a decoder's time.
MOST_SCANS = 100
# PIL copies all EXIF data for each segment that adds some: a file of 10 MB took more than 12 s. It takes Photoshop's apart.
MOST_COSTLY = 300
# Anything else before the pixels, of which PIL takes 1 to 7 us each. A panorama with its depth or a second picture has hundreds.
MOST_PIECES = 10_000
SEQUENTIAL = (0xC0, 0xC1)  # markers of a frame that is coded row by row, with the usual Huffman codes
# What libjpeg says of the rows behind those that were decoded; of several warnings it passes on the first.
_LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0x")
# In the order of their speed: 1.00, 1.11, 1.19 and 1.32 times the time for photographs of 91 KB (2-core EPYC, torchvision 0.29.1,
# torchcodec 0.17, Pillow 13, medians of 5). The first is always installed.
FASTEST = "simplejpeg"
Decode = Callable[[bytes, Literal["RGB", "GRAY"]], Any]  # to uint8 [C, H, W]


class Segments(NamedTuple):
    """What stands before the pixels.

    frame: where the segment with the height begins; None where rows do not follow one another in a single scan.
    """

    markers: set[int]
    is_plain: bool  # nothing but segments
    frame: int | None

    def may_have(self, marker: int) -> bool:
        """Whether there is a segment with this marker; also where the segments cannot be followed."""
        return marker in self.markers or not self.is_plain


class Header(NamedTuple):
    """The size by a header, and the segments around it."""

    height: int
    width: int
    colorspace: str  # simplejpeg's name
    segments: Segments

    @property
    def has_metadata(self) -> bool:
        """EXIF or XMP data, which may turn the picture."""
        return self.segments.may_have(APP1)


def read_header(content: bytes) -> Header | None:
    """None for what libjpeg-turbo's simple interface does not read, such as unusual chroma subsampling; DataError as of `read_segments`."""
    segments = read_segments(BytesIO(content))
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return Header(height, width, colorspace, segments)


def read_segments(file: BinaryIO) -> Segments:
    """Those before the pixels; DataError for more segments, padding and other bytes than Pillow, which reads them one by one, should read."""
    markers: set[int] = set()
    at, costly, count, is_plain, components = 2, 0, 0, True, 0
    frame: int | None = None
    while True:
        file.seek(at)
        head = file.read(10)
        if len(head) < 4:
            return Segments(markers, is_plain=False, frame=None)
        marker = head[1] if head[0] == 0xFF else None
        if marker == START_OF_SCAN:
            is_single = is_plain and head[4:5] == bytes([components])
            return Segments(markers, is_plain, frame if is_single else None)
        count += 1
        costly += marker == APP13 or (marker == APP1 and head[4:] == b"Exif\0\0")
        if costly > MOST_COSTLY:
            raise DataError(f"it has more than {MOST_COSTLY} pieces of EXIF or Photoshop's data. Save it again without them")
        if count > MOST_PIECES:
            raise DataError(f"it has more than {MOST_PIECES:,} pieces of metadata. Save it again without them")
        if marker is None or marker == 0xFF:
            is_plain = is_plain and marker is not None
            at += 1
        elif marker in _ALONE:
            is_plain = False
            at += 2
        else:
            markers.add(marker)
            if marker in SEQUENTIAL and len(head) == 10:
                frame, components = at, head[9]
            at += 2 + max(2, head[2] << 8 | head[3])  # Pillow has read the length, whatever it says


def check_scans(content: bytes) -> None:
    """DataError for more than MOST_SCANS."""
    if content.count(bytes([0xFF, START_OF_SCAN])) <= MOST_SCANS:  # a thousandth of the walk's time
        return
    scans, at = 0, 2
    while found := _MARKER.search(content, at):
        marker, at = content[found.end() - 1], found.end()
        if marker == END_OF_IMAGE:  # what follows is of another file, such as a phone's film
            break
        scans += marker == START_OF_SCAN
        at += int.from_bytes(content[at : at + 2])
    if scans > MOST_SCANS:
        raise DataError(f"it has {scans:,} scans; at most {MOST_SCANS} are read. Save it as a JPEG again")


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
    frame = header.segments.frame
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
