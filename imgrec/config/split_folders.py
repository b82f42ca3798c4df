"""Which folders below a root are splits, and which are classes. Imports no torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgrec.config.schema import Split
from imgrec.errors import DataError
from imgrec.files import IMAGE_EXTENSIONS, LAYOUTS, TABLE_EXTENSIONS, file_extension, is_our_table
from imgrec.image_folders import is_hidden, readable_folder

# train, Training, test_set, train_images, images-val, train2017: any case, with or without a word for what it holds.
_CONTENT = r"(?:data|(?:data)?sets?|images?|imgs?|pictures?|pics?|photos?|jpe?gs?|pngs?|files?|folder|split)"
_NAMES: dict[Split, str] = {"train": r"train(?:ing)?s?", "val": r"val(?:id|idation)?s?", "test": r"test(?:ing)?s?"}
_PATTERNS: dict[Split, re.Pattern[str]] = {
    split: re.compile(rf"(?:{_CONTENT}[ _.-]*)?{name}[ _.-]*{_CONTENT}?[ _.-]*\d*", re.IGNORECASE)
    for split, name in _NAMES.items()
}


class SplitFolders(NamedTuple):
    """The folder of each split there is, and a folder for the test whose images lie in no class folders."""

    folders: dict[Split, str]
    unlabelled: str | None = None


def find_split_folders(root: str, *, by_name: bool = False) -> SplitFolders:
    """{"train": root} where `root` has class folders only; by_name: classes stand in the names of files, and need no folders.

    DataError where a root is none, where it can be read in both ways, or its folders for training have no classes.
    """
    if not os.path.isdir(root):
        raise DataError(f"data.root={root} is not a folder. {LAYOUTS}")
    names = class_folders(root)
    meant = {name: split_meant(name) for name in names}
    splits = {split: [name for name in names if meant[name] == split] for split in _PATTERNS}
    if not (named := [name for several in splits.values() for name in several]):
        _check_labelled(root, by_name or names)
        return SplitFolders({"train": root})
    beside = [name for name in names if name not in named and has_images(os.path.join(root, name))]
    folders = {split: os.path.join(root, several[0]) for split, several in splits.items() if several}
    labelled = by_name or ("train" in folders and class_folders(folders["train"]))
    if len(beside) > bool(labelled):  # classes are two or more; one folder of images beside train/CLASS/* is none
        raise DataError(
            f"{root} has {_listed(named)} beside {_listed(beside)}: splits or classes? If {_listed(named)} are splits, "
            f"move {_listed(beside)} away, or into {root}/train if they are its classes. "
            f"If they are classes, rename them, such as to class_{named[0]}."
        )
    for split, several in splits.items():
        if len(several) > 1:
            raise DataError(f"{root} has more than one folder for {split}: {_listed(several)}. Remove or rename one of them.")
    if "train" not in folders:
        raise DataError(f"{root} has {_listed(named)}, but no folder train. Add it, with train/CLASS/*.jpg.")
    _check_labelled(folders["train"], labelled)
    test = folders.get("test")
    if test is not None and not by_name and not class_folders(test) and has_images(test):
        return SplitFolders({split: folder for split, folder in folders.items() if split != "test"}, test)
    return SplitFolders(folders)


def _check_labelled(folder: str, labelled: object) -> None:
    if not labelled and has_images(folder):
        tables = [name for beside in (folder, os.path.dirname(folder)) for name in tables_in(beside)]
        raise DataError(
            f"{folder} has images, but no class folders. Where a table has the classes type data=table "
            f"data.file={next(iter(tables), 'TABLE.csv')} data.root={folder}; where the files are called CLASS_1.jpg and so on, data.label_from='^[a-zA-Z]+'; "
            f"or move each image into {folder}/CLASS/."
        )


def split_meant(name: str) -> Split | None:
    """The split of this name, such as Training or val2017; None for another name."""
    return next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(name)), None)


def class_folders(root: str) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones and those of operating systems and network disks.

    DataError where it cannot be listed, or holds a link that leads to itself.
    """
    with readable_folder(root), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


def check_class_count(root: str, folder: str, classes: Sequence[str], *, least: int) -> None:
    """DataError where a folder for training, ROOT or below it, has fewer than `least` classes."""
    if len(classes) < least:
        number = f"only the class folder {classes[0]}" if classes else "no class folders"
        tables = [f" Or type data=table data.file={table} for classes in a table." for table in tables_in(root)]
        raise DataError(f"{folder} has {number}. {LAYOUTS}{''.join(tables[:1])}")


def has_images(folder: str) -> bool:
    """Whether it holds an image file itself, not in a subfolder. DataError where it cannot be listed."""
    with readable_folder(folder), os.scandir(folder) as entries:
        return any(file_extension(entry.name) in IMAGE_EXTENSIONS and not is_hidden(entry.name) for entry in entries)


def tables_in(folder: str) -> list[str]:
    """Paths of the files in a folder that may have the classes of images, sorted; none where it may not be listed.

    Without .txt, which seldom is a table, and without tables that imgrec wrote.
    """
    if not os.access(folder or ".", os.R_OK):
        return []
    with readable_folder(folder), os.scandir(folder or ".") as entries:
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_file())
    extensions = set(TABLE_EXTENSIONS) - {".txt"}
    paths = [os.path.join(folder, name) for name in names if file_extension(name) in extensions]
    return [path for path in paths if os.access(path, os.R_OK) and not is_our_table(Path(path))]


def _listed(names: list[str]) -> str:
    """'a, b, c and 3 more'"""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
