"""Every image file of a data set decoded once, by all cores; what was found is kept, and taken for files that have not changed."""

import io
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgrec.analysis.fingerprint import CONTENT_WORDS, LOW, WORDS, content_hash, low_frequencies, perceptual_hashes
from imgrec.analysis.image_faults import (
    FACTS,
    GRID,
    SURE_SPREAD,
    FileState,
    Sign,
    sample,
    spread,
)
from imgrec.config.schema import SPLITS, Split
from imgrec.data import jpeg
from imgrec.data.batch import Indices
from imgrec.data.decode import FORMATS, MIRRORED_AXES, ScaleError, decode_bytes, read_orientation
from imgrec.data.file_index import SETTLED_NS, ImageNames
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.data.loader import Loader
from imgrec.data.pieces import open_image
from imgrec.data.skip_list import names_below
from imgrec.errors import DataError
from imgrec.files import FORMAT_OF, file_extension, on_progress
from imgrec.scan.scan_cache import cache_file, file_stamps, read_facts, write_facts

FILES_AT_ONCE = 64  # files that a worker decodes before it hands over what it found
PORTION_S = 10.0  # after so many seconds what was found is kept, so that a check that is killed loses little
MOST_FILE_BYTES = 2**30  # of a file; 100 million pixels of 8 bytes take 0.8 GB
SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # PIL's names for one format in two wrappers
MANY_PICTURES, JPEG_HEADER = b"MPF\0", 2**16  # the mark of several pictures in a JPEG, and the bytes in which it stands
PNG_METADATA = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")  # where a PNG may say that it is turned


class Scan(NamedTuple):
    """The files of the splits, one after another in the order of the splits."""

    names: ImageNames  # [N], below the root
    facts: NDArray[np.void]  # FACTS [N]
    fingerprints: NDArray[np.uint64]  # [N, WORDS]; zeros where a file is not whole
    decoded: int  # files that were decoded now


class _Part(NamedTuple):
    facts: NDArray[np.void]
    fingerprints: NDArray[np.uint64]


class _Files:
    """The source of a Loader: the facts of `FILES_AT_ONCE` files from `first` on, of those to be decoded."""

    def __init__(self, splits: Sequence[ImageFiles], rows: Indices) -> None:
        self.splits, self.rows = splits, rows

    def __getitem__(self, first: int) -> _Part:
        rows = self.rows[first : first + FILES_AT_ONCE].tolist()
        part = _Part(np.zeros(len(rows), dtype=FACTS), np.zeros((len(rows), WORDS), dtype=np.uint64))
        channels = self.splits[0].preprocessing["channels"]
        samples, sampled = np.zeros((len(rows), channels, GRID, GRID), dtype=np.uint8), []
        low = np.zeros((len(rows), LOW * LOW), dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, about unusual metadata
            for k, row in enumerate(rows):
                header, pixels = look_at(*image_at(self.splits, row))
                part.facts[k] = (*header, 0)
                if pixels is None:
                    continue
                part.fingerprints[k, :CONTENT_WORDS], low[k] = content_hash(pixels), low_frequencies(pixels)
                if (pixels_of_grid := sample(pixels)) is None:
                    part.facts[k]["spread"] = spread(pixels)
                else:
                    samples[k] = pixels_of_grid
                    sampled.append(k)
            # All at once takes 3 us an image, one by one 40 and more; what was not decoded is black, and has no perceptual hash.
            part.fingerprints[:, CONTENT_WORDS:] = perceptual_hashes(low)
            part.facts["spread"][sampled] = spread(samples)[sampled]
            for k in sampled:
                if part.facts[k]["spread"] <= SURE_SPREAD:  # few images; keeping the pixels of all would take too much memory
                    _, pixels = look_at(*image_at(self.splits, rows[k]))
                    if pixels is not None:  # it was a moment ago
                        part.facts[k]["spread"] = spread(pixels)
        return part


def file_splits(data: ImageData) -> dict[Split, ImageFiles]:
    """The splits of a data set that have image files, train first."""
    found: dict[Split, ImageSet | None] = {split: getattr(data.splits, split) for split in SPLITS}
    return {split: images for split, images in found.items() if isinstance(images, ImageFiles)}


def image_at(splits: Iterable[ImageFiles], row: int) -> tuple[ImageFiles, int]:
    """The split of a row of a scan of `splits`, and its row there."""
    for images in splits:
        if row < len(images):
            return images, row
        row -= len(images)
    raise IndexError(row)


class _Header(NamedTuple):
    """What FACTS have of a header."""

    width: int
    height: int
    state: FileState
    signs: Sign


NO_HEADER = _Header(0, 0, FileState.UNREADABLE, Sign(0))


def look_at(images: ImageFiles, row: int) -> tuple[_Header, NDArray[np.uint8] | None]:
    """What the header of a file says, and its pixels where all of them are there: decoded as in training, uint8 [C, H, W]."""
    path = images.path(row)
    try:
        with images.open(row) as file:
            if os.fstat(file.fileno()).st_size > MOST_FILE_BYTES:
                return NO_HEADER._replace(state=FileState.TOO_LARGE), None
            content = file.read()  # once for the decoder and for the header: a second look at the file takes 10% of its time
    except OSError:
        return NO_HEADER._replace(state=FileState.NOT_OPENED), None
    state, pixels = FileState.WHOLE, None
    try:
        pixels = decode_bytes(content, path, images.preprocessing, images.reading["decoder"]).numpy()
    except ScaleError:
        state = FileState.NO_SCALE
    except DataError:
        state = FileState.DAMAGED
    try:
        header = _read_header(content, path, state)
    except Image.DecompressionBombError:
        return NO_HEADER._replace(state=FileState.TOO_LARGE), None
    except Exception:  # PIL's parsers raise any
        if pixels is None:
            return NO_HEADER, None
        header = _Header(pixels.shape[2], pixels.shape[1], state, Sign(0))
    if state == FileState.DAMAGED and header.width * header.height > images.preprocessing["max_pixels"]:
        header = header._replace(state=FileState.TOO_LARGE)
    return header, pixels


def _read_header(content: bytes, path: str, state: FileState) -> _Header:
    """Raises what PIL raises."""
    found = jpeg.read_header(content) if content.startswith(jpeg.SIGNATURE) else None
    several = found is not None and found.segments.may_have(jpeg.APP2) and MANY_PICTURES in content[:JPEG_HEADER]
    if found is not None and not found.has_metadata and not several:  # a tenth of PIL's time
        form, width, height = "JPEG", found.width, found.height
        signs = Sign.CMYK if found.colorspace in ("CMYK", "YCCK") else Sign(0)
    else:
        with open_image(io.BytesIO(content), FORMATS) as image:
            width, height = image.size
            signs, form = _signs(image), SAME_FORMAT.get(image.format or "", image.format or "")
            # Without these PIL would decode a PNG to look for them behind its pixels.
            if form != "PNG" or any(mark in content for mark in PNG_METADATA):
                signs |= Sign.TURNED if read_orientation(image) in MIRRORED_AXES else Sign(0)
    expected = FORMAT_OF.get(file_extension(path), "")
    if SAME_FORMAT.get(expected, expected) not in ("", form):
        signs |= Sign.WRONG_EXTENSION
    return _Header(width, height, state, signs)


def _signs(image: Image.Image) -> Sign:
    """By PIL's mode and what its parsers found."""
    signs = Sign(0)
    if image.mode == "CMYK":
        signs |= Sign.CMYK
    if image.mode[0] in "IF" or ";16" in repr(getattr(image, "tile", None)):
        signs |= Sign.SIXTEEN_BITS
    if image.mode in ("P", "PA"):
        signs |= Sign.PALETTE
    if image.has_transparency_data:
        signs |= Sign.ALPHA
    if getattr(image, "is_animated", False):
        signs |= Sign.ANIMATED
    return signs


def scan_files(
    splits: Sequence[ImageFiles],
    root: str,
    *,
    num_workers: int,
) -> Scan:
    """Facts and fingerprints of all files of the splits below `root`, those that changed or are new decoded by `num_workers` processes.

    A file is known by its name, size and times of change; one that changed in the last seconds is decoded again the next
    time, and so is one that could not be opened. What was found is kept every PORTION_S, and at an exception.
    """
    names = np.concatenate([names_below(root, images) for images in splits])
    stamps = file_stamps(root, names)
    facts, fingerprints = np.zeros(len(names), dtype=FACTS), np.zeros((len(names), WORDS), dtype=np.uint64)
    cache = cache_file(root, splits[0])
    known = read_facts(cache, names, stamps, facts, fingerprints)
    rows = np.flatnonzero(~known)
    if not len(rows):
        return Scan(names, facts, fingerprints, 0)
    settled = stamps[:, 1:].max(axis=1) < time.time_ns() - SETTLED_NS
    requests = range(0, len(rows), FILES_AT_ONCE)
    source = _Files(splits, rows)

    def keep(done: NDArray[np.bool_], *, portion: bool) -> None:
        kept = done & settled & (facts["state"] != FileState.NOT_OPENED)
        write_facts(cache, kept, names, stamps, facts, fingerprints, portion=portion)

    unkept, began = np.zeros_like(known), time.monotonic()
    try:
        with closing(Loader(source, requests, num_workers=min(num_workers, len(requests)))) as parts:
            for first, part in zip(requests, parts, strict=True):
                done = rows[first : first + FILES_AT_ONCE]
                facts[done], fingerprints[done], known[done], unkept[done] = part.facts, part.fingerprints, True, True
                if time.monotonic() > began + PORTION_S:
                    keep(unkept, portion=True)
                    unkept[:], began = False, time.monotonic()
                on_progress.get()("decoding images", len(done), len(rows))
    finally:
        keep(known, portion=False)
    return Scan(names, facts, fingerprints, len(rows))
