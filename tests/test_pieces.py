"""Image files of many small pieces: refused by every reader, named, and an image that cannot be read like others."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from error_parts import assert_refused, raises_error
from image_files import app_segment, file_kinds, png_chunk
from PIL import Image
from test_data_folder import PREPROCESSING, folder
from test_readable import found, photos, words

from imgrec import cli
from imgrec.data import jpeg, pieces
from imgrec.data.decode import Preprocessing, decode, decode_bytes
from imgrec.data.decoded import image_sizes
from imgrec.data.jpeg import read_segments
from imgrec.data.pieces import open_image
from imgrec.errors import DataError
from imgrec.files import IMAGE_FORMATS
from imgrec.scan.data_faults import _reason
from imgrec.scan.file_scan import look_at
from imgrec.storage import pack

KINDS = file_kinds(13, 9)
COLOUR = Preprocessing(**{**PREPROCESSING, "channels": 3})
METADATA, CHUNKS = "1,000 pieces of metadata", "1,000 chunks of metadata or of less than 1,024 bytes"
PIECES = {  # a file, where it is given more of what, how often it is read, how often it is not, and why
    "EXIF data": ("colour.jpg", 2, app_segment(0xE1, b"Exif\0\0II"), 300, 301, "300 pieces of EXIF"),
    "Photoshop's": ("colour.jpg", 2, app_segment(0xED, b"Photoshop 3.0\0"), 300, 301, "300 pieces of EXIF or Photoshop"),
    "comments": ("colour.jpg", 2, b"\xff\xfe\0\2", 980, 1001, METADATA),
    "padding": ("colour.jpg", 2, b"\xff", 980, 1001, METADATA),
    "of a kind that only PIL reads": ("cmyk.jpg", 2, b"\xff\xfe\0\2", 980, 1001, METADATA),
    "colour profiles": ("colour.png", 33, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**19))), 2, 301, "300 compressed pieces"),
    "packed texts": ("colour.png", 33, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b")), 300, 301, "300 compressed pieces"),
    "texts": ("colour.png", 33, png_chunk(b"tEXt", b"a\0b"), 990, 1001, CHUNKS),
    "texts behind the pixels": ("colour.png", -12, png_chunk(b"tEXt", b"a\0b"), 990, 1001, CHUNKS),
    "empty chunks of pixels": ("colour.png", 33, png_chunk(b"IDAT", b""), 990, 1001, CHUNKS),
    "frames without pixels": ("colour.png", -12, png_chunk(b"fcTL", bytes(26)), 0, 1001, CHUNKS),
    "comments of a GIF": ("one.gif", -40, b"!\xfe\1a\0", 100, 2000, "4,000 reads"),
    "a comment of many parts": ("one.gif", -40, b"!\xfe" + 5000 * b"\1a" + b"\0", 0, 1, "4,000 reads"),
}  # fmt: skip


@pytest.fixture
def low_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jpeg, "MOST_PIECES", 1000)
        patched.setattr(pieces, "MOST_SMALL", 1000)
        patched.setattr(pieces, "MOST_READS", 4000)
        yield


def with_pieces(name: str, at: int, piece: bytes, count: int) -> bytes:
    """at: -40 of a GIF: before its first picture, which has no palette of its own."""
    content = KINDS[name]
    if name.endswith(".gif"):
        at = content.index(b",\0\0\0\0")
    return content[:at] + piece * count + content[at:]


def scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG of gray, whose every scan after the first says in a few bytes that nothing changes."""
    tables = app_segment(0xDB, b"\0" + b"\1" * 64) + app_segment(0xC2, struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0))
    codes = app_segment(0xC4, b"\0\1" + bytes(15) + b"\0") + app_segment(0xC4, b"\x10\1" + bytes(15) + b"\0")
    blocks = bytes(side * side // 64 // 8)
    first, other = (app_segment(0xDA, bytes([1, 1, 0, *band, 0])) + blocks for band in ((0, 0), (1, 63)))
    return b"\xff\xd8" + tables + codes + first + other * (count - 1) + b"\xff\xd9"


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", PIECES)
def test_an_image_has_a_limit_on_its_pieces(kind: str, tmp_path: Path) -> None:
    name, at, piece, fits, too_many, reason = PIECES[kind]
    plain = decode_bytes(KINDS[name], name, COLOUR)
    (path := tmp_path / name).write_bytes(with_pieces(name, at, piece, fits))
    assert (decode(str(path), COLOUR) == plain).all()
    path.write_bytes(content := with_pieces(name, at, piece, too_many))
    with raises_error(DataError, path, "cannot be read", reason, "Save it again"):
        decode(str(path), COLOUR)
    with raises_error(DataError, "it.jpg", "cannot be read", reason, "Save it again"):
        decode_bytes(content, "it.jpg", COLOUR)


@pytest.mark.parametrize(
    ("name", "at", "piece", "count"),
    [
        ("colour.jpg", 2, app_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(100)), 400),
        ("colour.jpg", 20, b"\0", 2000),
        ("colour.png", 33, png_chunk(b"tEXt", b"dcm:StudyID\0 1"), 600),
        ("colour.png", 33, png_chunk(b"mkBT", bytes(100)), 800),
        ("colour.png", 33, png_chunk(b"IDAT", b""), 12_000),
    ],
    ids=["a panorama's depth", "bytes that fill up", "a scan's header", "layers of a drawing", "a chunk for each row"],
)
def test_pieces_that_programs_write_are_read(name: str, at: int, piece: bytes, count: int, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(with_pieces(name, at, piece, count))
    assert (decode(str(path), COLOUR) == decode_bytes(KINDS[name], name, COLOUR)).all()


@pytest.mark.parametrize(("count", "rest"), [(100, b"\xff\xda\0\0" * 50), (101, b"")])
def test_a_jpeg_has_a_limit_on_its_scans(count: int, rest: bytes) -> None:
    """Each is decoded over the whole image. What follows the image, such as a phone's film, may hold their marker."""
    if count == 100:
        assert decode_bytes(scans(count) + rest, "it.jpg", COLOUR).shape == (3, 64, 64)
        return
    with raises_error(DataError, "it.jpg", "101 scans", "100", "Save it as a JPEG again"):
        decode_bytes(scans(count) + rest, "it.jpg", COLOUR)


def most_pieces(content: bytes, piece: bytes) -> int:
    """How often a JPEG may have a piece."""
    count = 0
    while True:
        try:
            read_segments(BytesIO(content[:20] + piece * (count + 1) + content[20:]))
        except DataError:
            return count
        count += 1


@pytest.mark.parametrize(
    ("piece", "reads"),
    [(b"\0", 1), (b"\0\xff\xe1\0\x0aExif\0\0II", 2), (b"\xff\xd0", 1), (b"\xff\0", 1), (b"\xff\xfe\0\0", 1)],
    ids=["a stray byte", "and EXIF data behind it", "a restart", "an escaped byte", "a length of 0"],
)
def test_pieces_are_counted_as_pillow_reads_them(piece: bytes, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on behind what is no segment: a count that ended there took 10 MB of EXIF data for one piece."""
    monkeypatch.setattr(jpeg, "MOST_PIECES", 100)
    content = KINDS["colour.jpg"]
    assert content[2:4] == b"\xff\xe0"
    comments = most_pieces(content, b"\xff\xfe\0\2")
    assert 80 < comments < 100
    assert most_pieces(content, piece) == comments // reads
    with Image.open(BytesIO(content[:20] + 5 * piece + content[20:])) as image:
        assert image.size == (13, 9)


def header_reads(content: bytes) -> int:
    """How often Pillow reads a file's header."""

    class Counting(BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            self.count += 1
            return super().read(size)

    file = Counting(content)
    Image.open(file, formats=tuple(IMAGE_FORMATS))
    return file.count


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_any_kind_is_opened_with_as_many_reads_as_pillow_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reads = KINDS[name], header_reads(KINDS[name])
    with Image.open(BytesIO(content)) as expected:
        monkeypatch.setattr(pieces, "MOST_READS", reads + 10)
        with open_image(BytesIO(content), tuple(IMAGE_FORMATS)) as image:
            assert (image.format, image.size, image.mode) == (expected.format, expected.size, expected.mode)
            assert np.array_equal(np.asarray(image), np.asarray(expected))
        monkeypatch.setattr(pieces, "MOST_READS", reads - 1)
        with raises_error(DataError, "its header", f"{reads - 1} reads", "Save it again"):
            open_image(BytesIO(content), tuple(IMAGE_FORMATS))


@pytest.fixture
def broken(low_limits: None) -> dict[str, bytes]:
    return {
        f"{number}{name}": with_pieces(name, at, piece, count)
        for number, (name, at, piece, _, count, _) in enumerate(PIECES.values())
    } | {"scans.jpg": scans(101)}


def test_every_reader_refuses_them(broken: dict[str, bytes], tmp_path: Path) -> None:
    root = photos(tmp_path, broken)
    assert found(root, check="all") == {str(root / "train/a" / name) for name in broken}
    images = folder(root).splits.train
    names = [Path(images.path(row)).name for row in range(len(images))]
    sizes = dict(zip(names, image_sizes(images.open, len(images)).tolist(), strict=True))
    for row, name in enumerate(names):
        header, pixels = look_at(images, row)
        assert (pixels is None) == (name in broken)
        if name in broken and name != "scans.jpg":
            assert (sizes[name], header.state.name) == (0, "UNREADABLE")
            assert "Save it again" in _reason(images, row)
            assert pack._extension("in a table", broken[name]) == ".bin"


@pytest.mark.slow
def test_a_training_names_them_or_goes_on_without(
    broken: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path, broken)
    assert cli.main(words(root)) == 2
    assert_refused(capsys.readouterr().err, root / "train", "cannot be read", "Save it", "data.on_bad_image=skip")
    assert cli.main(words(root, "data.on_bad_image=skip", "id=2")) == 0
