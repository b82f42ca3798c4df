"""Splits of image files whose classes are the names of folders, or are found in the names of files."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Unpack

import numpy as np

from imgrec.config.stored_classes import check_class_folders
from imgrec.data.batch import Indices
from imgrec.data.decode import Preprocessing
from imgrec.data.file_index import FileIndex, join_names, pack_names
from imgrec.data.file_names import find_in_names
from imgrec.data.folder import ImageFiles, Reading
from imgrec.data.folder_classes import filled_class_folders
from imgrec.errors import DataError, did_you_mean, first_names, shorten
from imgrec.files import EXTENSIONS_TEXT, composed


def label_indices(labels: Sequence[str], classes: Sequence[str], place: Callable[[int], str]) -> Indices:
    """The labels as indices in the class list; DataError, with the place of the image, for one that is not in it."""
    index = {name: k for k, name in enumerate(classes)}
    if unknown := set(labels) - index.keys():
        row = next(row for row, label in enumerate(labels) if label in unknown)
        raise DataError(
            f"{place(row)}: the class {shorten(labels[row])}, but train does not have it ({first_names(classes, 10)})."
            f"{did_you_mean(labels[row], classes)} Correct it, or add such an image to train."
        )
    return np.fromiter(map(index.__getitem__, labels), dtype=np.int64, count=len(labels))


def folder_split(
    root: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    whole: bool = False,
    ignored: Counter[str] | None = None,
    group_from: re.Pattern[str] | None = None,
    files: FileIndex | None = None,
    **reading: Unpack[Reading],
) -> ImageFiles:
    """The split ROOT/CLASS/*, its class folders mapped to `classes` by name, in whichever form of Unicode it is written.

    whole: every class must have images, as in train. `ignored` counts the files that are no images. Files are listed, not
    opened. files: the index of ROOT, where that is open already.
    DataError for a missing folder, an unknown or empty class, or no images.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder. Name a folder with CLASS/*.jpg.")
    folders: dict[str, list[str]] = {}
    files = FileIndex(root) if files is None else files
    for folder in filled_class_folders(files, ignored=ignored):
        folders.setdefault(composed(folder), []).append(folder)
    check_class_folders(root, folders, classes)
    found = [[files.find(folder, ignored=ignored) for folder in folders.get(name, [])] for name in classes]
    files.keep()
    counts = [sum(map(len, parts)) for parts in found]
    if not any(counts):
        raise DataError(
            f"{root} has no images in class folders (files that end in {EXTENSIONS_TEXT}). Put them into {root}/CLASS/."
        )
    if whole and 0 in counts:
        empty = os.path.join(root, classes[counts.index(0)])
        raise DataError(f"the class folder {empty} has no images. Add some, or remove it.")
    names = join_names(list(chain.from_iterable(found)))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    groups = None
    if group_from is not None:
        groups = pack_names(find_in_names("group_from", group_from, root, list(map(os.fsdecode, names.tolist()))))
    return ImageFiles(root, names, labels, preprocessing=preprocessing, groups=groups, **reading)


def named_split(
    root: str,
    names: Sequence[str],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    label_from: re.Pattern[str],
    group_from: re.Pattern[str] | None = None,
    **reading: Unpack[Reading],
) -> ImageFiles:
    """The split of these images below ROOT, which `find_images` gives, their classes found in their names and mapped to `classes`.

    DataError for a name in which none is found, or another class.
    """
    if not names:
        raise DataError(f"{root} has no images (files that end in {EXTENSIONS_TEXT}). Add some, or name another folder.")
    labels = find_in_names("label_from", label_from, root, names)
    indices = label_indices(labels, classes, lambda row: os.path.join(root, names[row]))
    groups = None if group_from is None else pack_names(find_in_names("group_from", group_from, root, names))
    return ImageFiles(root, pack_names(names), indices, preprocessing=preprocessing, groups=groups, **reading)
