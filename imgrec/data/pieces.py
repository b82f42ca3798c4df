"""Image files with more pieces than a picture needs: refused before Pillow, which handles each of them in Python, has spent seconds."""

import struct
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from PIL import Image

from imgrec.data import jpeg
from imgrec.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IDAT", b"fcTL", b"fdAT")  # of a PNG; an animated one has many of each
# Chunks of a PNG that PIL unpacks, 1 MB from 1 KB in 2.2 ms: a file of 10 MB took 44 s.
COMPRESSED_CHUNKS, MOST_COMPRESSED = (b"iCCP", b"zTXt", b"iTXt"), 300
# PIL takes 3 to 5 us a chunk: a file of 10 MB of empty ones took 2 to 3 s. Encoders write 8 KB or more of the pixels at once, or a
# row of a scan. A scan's header may be hundreds of texts, and a drawing program keeps its layers in chunks of its own.
SMALL_CHUNK, MOST_SMALL = 1024, 50_000  # bytes of pixels, and how many chunks of less, or of metadata
# PIL reads a GIF's comments byte by byte: 10 MB of them took 5.7 s. Behind the header only where it looks for a second picture.
MOST_READS = 300_000


class _Counted:
    """A file of which PIL reads at most `MOST_READS` times."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MOST_READS
        self.read: Callable[..., bytes] = self._read
        self.seek, self.tell = file.seek, file.tell

    def _read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise DataError(f"its header takes more than {MOST_READS:,} reads. Save it again")
        return self._file.read(size)

    def count_no_more(self) -> None:
        self.read = self._file.read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_image(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """`Image.open` of a file at its start; DataError for one with too many pieces."""
    check_pieces(file)
    return open_counted(file, formats)


def open_counted(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """`open_image` of a file that `check_pieces` has seen."""
    file.seek(0)
    counted = _Counted(file)
    image = Image.open(counted, formats=formats)  # type: ignore[arg-type]
    if image.format != "GIF":  # decoders of other formats read single bytes of the pixels
        counted.count_no_more()
    return image


def check_pieces(file: BinaryIO) -> None:
    """DataError for a JPEG or PNG with too many pieces."""
    file.seek(0)
    start = file.read(len(PNG_SIGNATURE))
    if start.startswith(jpeg.SIGNATURE):
        jpeg.read_segments(file)
    elif start == PNG_SIGNATURE:
        _check_chunks(file)


def _check_chunks(file: BinaryIO) -> None:
    at, compressed, small = len(PNG_SIGNATURE), 0, 0
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            break
        compressed += kind in COMPRESSED_CHUNKS
        small += length < SMALL_CHUNK or kind not in PIXEL_CHUNKS
        if compressed > MOST_COMPRESSED:
            raise DataError(f"it has more than {MOST_COMPRESSED} compressed pieces of metadata. Save it again without them")
        if small > MOST_SMALL:
            raise DataError(
                f"it has more than {MOST_SMALL:,} chunks of metadata or of less than {SMALL_CHUNK:,} bytes. Save it again"
            )
        at += 12 + length
        file.seek(at)
