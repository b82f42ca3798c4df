"""What was found in a data set, kind by kind, with examples."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from imgrec.analysis.image_faults import (
    ASPECT,
    LARGE,
    STATE_KINDS,
    TINY,
    WRONG_EXTENSION,
    FaultKind,
    find_class_faults,
    find_image_faults,
)
from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.data.decode import FORMATS
from imgrec.data.file_index import ImageNames
from imgrec.data.folder import ImageFiles
from imgrec.data.pieces import open_image
from imgrec.data.split_record import show_name
from imgrec.errors import DataError, printable
from imgrec.scan.file_scan import MOST_FILE_BYTES, Scan, image_at
from imgrec.scan.terminal_output import SHOWN_EXAMPLES


@dataclass(frozen=True)
class DataFinding:
    """A kind of fault or hint with all that are of it."""

    kind: FaultKind
    rows: Indices  # of the scan; none where classes are meant
    sentences: list[str]  # of the first of the rows; of all classes
    leave_out: Indices  # rows that a skip list has
    partners: tuple[int | None, ...] = ()  # rows of the pictures that those of the sentences are copies of
    pictures: int | None = None  # where several rows show one, how many there are: of the first of the rows, which have sentences

    @property
    def count(self) -> int:
        return self.pictures or len(self.rows) or len(self.sentences)


def find_faults(
    scan: Scan, splits: Mapping[Split, ImageFiles], counts: Mapping[Split, Indices], classes: tuple[str, ...], image_size: int
) -> list[DataFinding]:
    """Of single files and of classes. splits: those that were scanned, in this order."""
    none: Indices = np.zeros(0, dtype=np.int64)
    of_images = [
        DataFinding(
            kind,
            rows,
            [_example(scan, splits, row, kind) for row in rows[:SHOWN_EXAMPLES].tolist()],
            rows if kind.leave_out else none,
        )
        for kind, rows in find_image_faults(scan.facts, image_size).items()
    ]
    return of_images + [DataFinding(kind, none, said, none) for kind, said in find_class_faults(counts, classes).items()]


def names_to_leave_out(scan: Scan, findings: list[DataFinding]) -> ImageNames:
    """Of the images that a skip list has, sorted."""
    rows = [finding.leave_out for finding in findings]
    return np.unique(scan.names[np.concatenate(rows)]) if rows else scan.names[:0]


def _example(scan: Scan, splits: Mapping[Split, ImageFiles], row: int, kind: FaultKind) -> str:
    said = _describe(*image_at(splits.values(), row), kind)
    return show_name(scan.names[row]) + (f": {said}" if said else "")


def _describe(images: ImageFiles, row: int, kind: FaultKind) -> str:
    """What a person wants to know of an image of this kind: why it cannot be read, its format, or its sides; else nothing."""
    if kind in STATE_KINDS.values():
        return _reason(images, row)
    if kind not in (WRONG_EXTENSION, TINY, ASPECT, LARGE):
        return ""
    try:
        with warnings.catch_warnings(action="ignore"), images.open(row) as file, open_image(file, FORMATS) as image:
            return f"{image.format}" if kind == WRONG_EXTENSION else f"{image.width}x{image.height}"
    except Exception:  # PIL's parsers raise any, and a moment ago there was none
        return "it cannot be read now"


def _reason(images: ImageFiles, row: int) -> str:
    """Why a file cannot be read; one that the scan did not read as it is too long is not read here either."""
    path = images.path(row)
    try:
        if (size := os.path.getsize(path)) > MOST_FILE_BYTES:
            return f"{size / 2**30:.1f} GiB"
        images.decode(row)
    except OSError as error:
        return error.strerror or str(error)
    except DataError as error:
        return str(error).removeprefix(printable(path)).removeprefix(" cannot be read").removeprefix(": ").rstrip(".")
    return "it can be read now"
