"""The classes of a folder of images: its class folders that hold files, or what is found in the names of its files. Imports no torch."""

import re
from collections import Counter
from collections.abc import Sequence

from imgrec.config.split_folders import check_class_count, find_split_folders
from imgrec.data.file_index import FileIndex, listed_images
from imgrec.data.file_names import find_in_names
from imgrec.errors import DataError, first_names, plural
from imgrec.files import composed

EMPTY_FOLDER = "empty folder"


def filled_class_folders(files: FileIndex, *, ignored: Counter[str] | None = None) -> list[str]:
    """`class_folders` of its root without those that hold no file at any depth, which `ignored` counts; all of them where there is no other."""
    names = files.listing("").folders
    filled = [name for name in names if files.has_files(name)] or list(names)
    if ignored is not None and len(filled) < len(names):
        ignored[EMPTY_FOLDER] += len(names) - len(filled)
    return filled


def read_class_folders(root: str, folder: str, files: FileIndex, *, least: int) -> tuple[str, ...]:
    """The classes of a folder for training, ROOT or below it, sorted; DataError where there are fewer than `least`."""
    classes = tuple(sorted(set(map(composed, filled_class_folders(files)))))
    check_class_count(root, folder, classes, least=least)
    return classes


def read_class_names(folder: str, names: Sequence[str], label_from: re.Pattern[str], *, least: int) -> tuple[str, ...]:
    """The classes in the names of images below a folder for training, sorted; DataError where there are fewer than `least`."""
    classes = tuple(sorted(set(find_in_names("label_from", label_from, folder, names))))
    if len(classes) < least:
        found = f"finds only the class {classes[0]} in {folder}" if classes else f"{folder} has no images"
        raise DataError(f"data.label_from={label_from.pattern}: {found}. Set data.label_from='([a-z]+)_', say, or add images.")
    return classes


def find_classes(root: str, label_from: re.Pattern[str] | None, *, least: int) -> tuple[str, ...]:
    """The classes that data=imagefolder will have; DataError for a folder that it cannot read."""
    folder = find_split_folders(root, by_name=label_from is not None).folders["train"]
    if label_from is None:
        return read_class_folders(root, folder, FileIndex(folder), least=least)
    return read_class_names(folder, listed_images(folder), label_from, least=least)


def new_classes(root: str, old: Sequence[str], found: Sequence[str], *, old_images: bool) -> list[str]:
    """The classes of a folder that a run does not have.

    DataError where there are none, or one that is nearly an old one, or without old_images an old one is missing.
    """
    known = {name.casefold(): name for name in old}
    new = [name for name in found if name not in old]
    for name in new:
        if (same := known.get(name.casefold())) is not None:
            raise DataError(
                f"data.root={root}: the class {name} is new, and the run has {same}. If it is the same, rename the folder to {same}; "
                f"else give it another name, such as {name}_2."
            )
    if not new:
        raise DataError(
            f"data.root={root} has no new class, only {first_names(found, 3)}, which the run has. "
            "Set data.root=FOLDER with a folder for each new class."
        )
    if not old_images and (missing := sorted(set(old) - set(found))):
        # Of an 8-class network on Fashion-MNIST the accuracy on old classes fell from 86.5% to 1.1% without any.
        raise DataError(
            f"data.root={root} has no images of {plural(len(missing), 'old class', 'es')} ({first_names(missing, 3)}): the "
            "new classes would be answered for all images. Set old_images=true, or put some images of each into it."
        )
    return new
