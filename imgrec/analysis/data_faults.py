"""What was found in a data set, kind by kind, with examples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from imgrec.analysis.file_scan import Scan, describe
from imgrec.analysis.image_faults import FaultKind, find_class_faults, find_image_faults
from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.data.file_index import ImageNames
from imgrec.data.folder import ImageFiles
from imgrec.data.split_record import show_name

SHOWN_EXAMPLES = 5  # of a kind


@dataclass(frozen=True)
class DataFinding:
    """A kind of fault or hint with all that are of it."""

    kind: FaultKind
    rows: Indices  # of the scan; none where classes are meant
    sentences: list[str]  # the first of them

    @property
    def count(self) -> int:
        return len(self.rows) or len(self.sentences)


def find_faults(
    scan: Scan, splits: Mapping[Split, ImageFiles], counts: Mapping[Split, Indices], classes: tuple[str, ...], image_size: int
) -> list[DataFinding]:
    """Faults before hints. splits: those that were scanned, in this order."""
    of_images = [
        DataFinding(kind, rows, [_example(scan, splits, row, kind) for row in rows[:SHOWN_EXAMPLES].tolist()])
        for kind, rows in find_image_faults(scan.facts, image_size).items()
    ]
    none: Indices = np.zeros(0, dtype=np.int64)
    of_classes = [DataFinding(kind, none, sentences) for kind, sentences in find_class_faults(counts, classes).items()]
    return sorted([*of_images, *of_classes], key=lambda finding: not finding.kind.is_fault)


def names_to_leave_out(scan: Scan, findings: list[DataFinding]) -> ImageNames:
    """Of the images that a skip list has, sorted."""
    rows = [finding.rows for finding in findings if finding.kind.leave_out]
    return np.unique(scan.names[np.concatenate(rows)]) if rows else scan.names[:0]


def image_at(splits: Mapping[Split, ImageFiles], row: int) -> tuple[ImageFiles, int]:
    """The split of a row of the scan, and its row there."""
    for images in splits.values():
        if row < len(images):
            return images, row
        row -= len(images)
    raise IndexError(row)


def _example(scan: Scan, splits: Mapping[Split, ImageFiles], row: int, kind: FaultKind) -> str:
    said = describe(*image_at(splits, row), kind)
    return show_name(scan.names[row]) + (f": {said}" if said else "")
