"""Images that belong together by their names: a burst, frames of a film, crops of one photograph."""

import re

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.duplicates import number_rows
from imgrec.data.batch import Indices

# On names that zero bytes end. What is left of IMG_007_a.jpg, IMG_007-burst02.png and IMG_007 (2).JPG is IMG_007; of IMG_007.jpg too,
# as only a digit before it makes an ending of it.
FOLDER_OR_EXTENSION = re.compile(rb"[^\0]*/|\.[^./\0]*(?=\0)")
ENDING = re.compile(rb"(\d[^\0]*?)[-_ .(~]+(?:copy|edited|flip|left|mirror|right|[a-zA-Z]|[a-zA-Z]{0,8}\d{1,6})\)?(?=\0)")
MOST_OF_CLASS = 0.5  # a larger part of a class that is named alike has the name of the class, a camera or a data set


def groups_across_splits(names: NDArray[np.bytes_], labels: Indices, splits: Indices) -> Indices:
    """Groups [N] of images of a class whose names differ in their ending only, of those that are in several splits; -1 for others.

    A hint, no proof. Not counted are groups of more than half of their class, and those in which a name comes twice: numbers that
    start again in each split say nothing. A million names take 3 s.
    """
    if not len(names):
        return np.empty(0, dtype=np.int64)
    stems = FOLDER_OR_EXTENSION.sub(b"", b"\0".join([*names.tolist(), b""]))
    stem = np.array(stems.split(b"\0")[:-1], dtype=np.bytes_)
    key = np.array(ENDING.sub(rb"\1", stems).split(b"\0")[:-1], dtype=np.bytes_)
    group, first = number_rows(key, labels)
    size = np.bincount(group)
    _, of_stem = number_rows(stem, group)
    lowest, highest = splits[first], splits[first]
    np.minimum.at(lowest, group, splits)
    np.maximum.at(highest, group, splits)
    counts = (
        (lowest < highest) & (np.bincount(group[of_stem]) == size) & (size <= MOST_OF_CLASS * np.bincount(labels)[labels[first]])
    )
    found: Indices = np.where(counts, np.cumsum(counts) - 1, -1)[group]
    return found
