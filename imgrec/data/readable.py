"""Which images cannot be read, and whether they leave enough of a data set where they are skipped: found out before the first step."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from imgrec.config.schema import Split
from imgrec.data import jpeg
from imgrec.data.batch import Request
from imgrec.data.cache import cache_folder, write_cached
from imgrec.data.decode import FORMATS, ScaleError
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.data.pieces import PNG_SIGNATURE, open_image
from imgrec.data.split_record import DataRecord
from imgrec.errors import DataError, SourceError
from imgrec.files import on_progress

LEAST_REMEMBERED = 10_000  # images
AT_ONCE = 16  # images that a thread reads into one batch
# Files of a split whose ends are read: 30 us each on a local disk. Test splits up to this size are decoded, 2 ms each, as
# the first bad image there would end the run after its last epoch.
MOST_ENDS, MOST_DECODED = 100_000, 2000
END_BYTES = 4096  # in which a whole file has its end marker, also where something was appended to it


class Unreadable(NamedTuple):
    """An image that cannot be read, and the sentence that says so."""

    split: Split
    path: str
    reason: str


def find_unreadable(data: ImageData, *, rank: int, size: int) -> Iterator[list[Unreadable]]:
    """Part by part, those of the images that this rank looks at, of the splits where the first of them is an error.

    By data.check all are decoded, or, as most damage shows in the first and last bytes of a file, what looks damaged there.
    Raises ScaleError and SourceError. Of images that are far only data.check=all looks at any.
    """
    for split, images in _file_splits(data):
        if images.skips or (images.is_far and data.check == "auto"):
            continue
        whole = data.check == "all" or (split == "test" and len(images) <= MOST_DECODED)
        error = partial(_error, images, whole=whole)
        step = 1 if whole else -(-len(images) // MOST_ENDS)
        rows = range(rank * step, len(images), size * step)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-readable") as pool:
            for part in range(0, len(rows), 64 * AT_ONCE):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # `decode` does that too, but threads share their filters
                    errors = list(pool.map(error, rows[part : part + 64 * AT_ONCE]))
                on_progress.get()("looking at images", len(errors), len(rows))
                yield [Unreadable(split, *found) for found in errors if found is not None]


def _file_splits(data: ImageData) -> Iterator[tuple[Split, ImageFiles]]:
    """The splits that are read from files; that of train as a training reads it, which skips by another key."""
    for split in get_args(Split):
        images = getattr(data.splits, split)
        if isinstance(images, ImageFiles):
            yield split, images.for_training(None, 0) if split == "train" else images


def are_known_readable(data: ImageData, record: DataRecord) -> bool:
    """Whether `find_unreadable` found nothing in the same images already, by their names, sizes and checksums in the record."""
    mark = _mark(data, record)
    return mark is not None and mark.is_file()


def remember_readable(data: ImageData, record: DataRecord) -> None:
    """For `are_known_readable`."""
    if (mark := _mark(data, record)) is not None:
        write_cached(mark)


def _mark(data: ImageData, record: DataRecord) -> Path | None:
    """The file of the cache whose presence says it; None for few images, which take less than a second, and with data.check=all."""
    folder = cache_folder()
    if folder is None or data.check == "all" or sum(len(split.labels) for split in record.splits.values()) < LEAST_REMEMBERED:
        return None
    digest = hashlib.sha1(f"{record.digest()} {data.preprocessing()}".encode(), usedforsecurity=False)
    for split, images in _file_splits(data):
        content = record.splits[split].content
        digest.update(f"{split} {os.path.realpath(images.path(0))} {images.reading} ".encode(errors="surrogateescape"))
        digest.update(content[np.flatnonzero((content >= 0).any(axis=1))].tobytes())
    return folder / f"readable-{digest.hexdigest()}-1"


def _error(images: ImageFiles, row: int, *, whole: bool) -> tuple[str, str] | None:
    """The path and what `decode` says, where the image cannot be read; whole: its pixels are decoded in any case."""
    if not whole and _looks_whole(images, row):
        return None
    try:
        images.decode(row)
    except (ScaleError, SourceError):
        raise
    except DataError as error:
        return images.path(row), str(error)
    return None


def _looks_whole(images: ImageFiles, row: int) -> bool:
    """Whether a file begins and ends as its format does, and by its header is neither too large nor has values without a scale.

    Of a JPEG its size is not looked for, and of other formats than PNG the end.
    """
    try:
        with images.open(row) as file:
            first = file.read(24)
            file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
            last = file.read(END_BYTES)
            if first.startswith(jpeg.SIGNATURE):
                return b"\xff\xd9" in last  # in compressed data a zero byte follows each 0xff
            if first.startswith(PNG_SIGNATURE):
                width, height = (int.from_bytes(first[at : at + 4]) for at in (16, 20))
                return width * height <= images.preprocessing["max_pixels"] and b"IEND\xaeB`\x82" in last
            with open_image(file, FORMATS) as image:
                has_scale = image.mode != "F" or images.preprocessing["scale"] is not None
                return has_scale and image.width * image.height <= images.preprocessing["max_pixels"]
    except SourceError:
        raise
    except Exception:  # PIL's parsers raise any; `decode` then says what is wrong
        return False


def check_readable(data: ImageData) -> None:
    """DataError where no image of a class of a split can be read, or none of the split.

    Reads one image of each class, and more only while they are unreadable. Where these are not skipped nothing is read, as
    the first of them is an error then.
    """
    for split, images in reversed([*_file_splits(data)]):  # train is the first to be named
        if images.skips and not images.is_far:
            _check_split(images, split, data.classes)


def _check_split(images: ImageFiles, split: str, classes: tuple[str, ...]) -> None:
    order = np.argsort(images.labels, kind="stable")
    present, first, counts = np.unique(images.labels[order], return_index=True, return_counts=True)
    read = np.zeros(len(present), dtype=bool)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-readable") as pool:
        for tried in range(counts.max()):
            pending = np.flatnonzero(~read & (tried < counts))
            parts = np.split(order[first[pending] + tried], range(AT_ONCE, len(pending), AT_ONCE))
            for batch in pool.map(images.__getitem__, [Request(0, part, len(part)) for part in parts]):
                read |= np.isin(present, batch.labels.numpy())
            if (read | (counts <= tried + 1)).all():
                break
    if read.all():
        return
    lost = np.flatnonzero(~read)[0]
    what = f"the {counts[lost]:,} images of class {classes[present[lost]]} in" if read.any() else f"the {len(images):,} images of"
    example = images.path(int(order[first[lost]]))
    raise DataError(
        f"{example}: none of {what} the {split} split can be read, and unreadable images are skipped. "
        "Replace them, or remove their folder."
    )
