"""Images whose labels stand in a table, a row for each."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Unpack

import numpy as np

from imgrec.config.schema import Split
from imgrec.config.split_folders import class_folders, split_meant
from imgrec.data.batch import Indices
from imgrec.data.file_index import pack_names
from imgrec.data.file_splits import label_indices
from imgrec.data.folder import FileData, FileKeys, ImageFiles
from imgrec.data.image_data import Splits
from imgrec.data.table_file import Table, read_columns
from imgrec.errors import DataError, shorten
from imgrec.files import IMAGE_EXTENSIONS, composed, file_extension


class ImageTable(FileData):
    """The rows of a table: the path of an image below `root`, its class, and where there are such columns its split and group."""

    def __init__(
        self,
        *,
        file: str,
        root: str | None,
        path: str,
        label: str,
        split: str | None,
        group: str | None,
        **keys: Unpack[FileKeys],
    ) -> None:
        super().__init__(**keys)
        self.file, self.root = file, (os.path.dirname(file) or ".") if root is None else root
        columns = {"path": path, "label": label, "split": split, "group": group}
        self.columns = {key: name for key, name in columns.items() if name is not None}

    def describe_classes(self, count: int) -> str:
        return f"{self.file} has {count} classes"

    def read(self) -> Splits:
        table = read_columns(self.file, self.columns)
        if not os.path.isdir(self.root):
            raise DataError(f"data.root={self.root} is not a folder. Set data.root=FOLDER that the paths start from.")
        labels = list(map(composed, table.filled("label")))
        rows = _split_rows(table) if "split" in self.columns else {"train": np.arange(len(labels))}
        classes = tuple(sorted({labels[row] for row in rows["train"].tolist()}))
        if len(classes) < 2:
            raise DataError(
                f"data.label={self.columns['label']}: {self.file} has only the class {shorten(classes[0])} for training. "
                "Set data.label=COLUMN of the classes, or add rows of another."
            )
        images = ImageFiles(
            self.root,
            pack_names(_find_files(table, self.root)),
            label_indices(labels, classes, table.row),
            preprocessing=self.preprocessing(),
            groups=pack_names(map(composed, table.filled("group"))) if "group" in self.columns else None,
            **self.reading,
        )
        # By name, so that a table whose rows come in another order is the same data.
        splits = {split: images.take(chosen[np.argsort(images.names[chosen])]) for split, chosen in rows.items()}
        if "split" not in self.columns:
            return self.cut_test(splits["train"], classes)
        return Splits(classes, splits["train"], splits.get("val"), splits.get("test"))

    def column_of(self, column: str, images: ImageFiles) -> list[str]:
        """The texts of a column for images of its splits; ConfigError for one that the table does not have."""
        table = read_columns(self.file, {"path": self.columns["path"], "by": column}, group="")
        names = pack_names(_find_files(table, self.root))
        order = np.argsort(names)
        rows = order[np.searchsorted(names, images.names, sorter=order)]
        return [table.columns["by"][row].strip() for row in rows.tolist()]


def _split_rows(table: Table) -> dict[Split, Indices]:
    """The rows of each split; DataError for a text that is no split, or no rows of train."""
    texts = table.filled("split")
    meant = {text: split_meant(text) for text in set(texts)}
    if None in meant.values():
        row = next(row for row, text in enumerate(texts) if meant[text] is None)
        raise DataError(
            f"{table.row(row)}: {shorten(texts[row])} is no split. Write train, val or test, or set data.split=null to cut them by share."
        )
    rows: dict[Split, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows[meant[text]].append(row)  # type: ignore[index]
    if "train" not in rows:
        raise DataError(f"{table.file} has {' and '.join(rows)}, but no rows of train. Add some, or set data.split=null.")
    return {split: np.array(chosen, dtype=np.int64) for split, chosen in rows.items()}


class _Folder:
    """A folder that the paths of a table name, and its files by their names in Unicode's composed form."""

    def __init__(self, root: str, folder: str) -> None:
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
            names = []
        except OSError as error:
            raise DataError(
                f"{os.path.join(root, folder)} cannot be listed: {error.strerror}. Fix it, or set data.root=FOLDER."
            ) from error
        self.files = {composed(name): name for name in names}
        inside = os.path.relpath(folder, root) if os.path.isabs(folder) else folder
        # Relative to the root, wherever that is; elsewhere as it was written, as links may change what .. means.
        folder = folder if ".." in inside.split("/") else os.path.normpath(inside)
        self.prefix = "" if folder == "." else f"{folder}/"

    def find(self, name: str) -> str | None:
        """The file of this name, else the one that adds the extension of an image to it; of several the names with / between them."""
        return self.files.get(name) or self._by_stem.get(name)

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        stems: dict[str, str] = {}
        for text, name in self.files.items():
            if (extension := file_extension(text)) in IMAGE_EXTENSIONS:
                stem = text[: -len(extension)]
                stems[stem] = f"{stems[stem]}/{name}" if stem in stems else name
        return stems


def _find_files(table: Table, root: str) -> list[str]:
    """The file of each row, relative to the root; each folder is listed once, and no file looked at.

    DataError for a row whose image is not there, may be several files, or is that of another row.
    """
    folders: dict[str, _Folder] = {}
    names: list[str] = []
    missing: list[int] = []

    def find(path: str) -> tuple[str, str | None]:
        parent, _, name = path.rpartition("/")
        if (folder := folders.get(parent)) is None:
            folder = folders[parent] = _Folder(root, parent or ("/" if path.startswith("/") else ""))
        return folder.prefix, folder.find(composed(name))

    for row, path in enumerate(table.filled("path")):
        prefix, found = find(path)
        if found is None and "\\" in path:  # as Windows writes them
            prefix, found = find(path.replace("\\", "/"))
        if found is None:
            missing.append(row)
        elif "/" in found:
            several = " or ".join(sorted(found.split("/")))
            raise DataError(f"{table.row(row)}: {path} may be {several}. Write its extension into the table.")
        names.append(f"{prefix}{found}")
    if missing:
        raise DataError(_missing(table, root, missing))
    if len(set(names)) < len(names):
        rows: dict[str, int] = {}
        row = next(row for row, name in enumerate(names) if rows.setdefault(name, row) != row)
        raise DataError(
            f"{table.row(row)}: {names[row]} stands in {table.row(rows[names[row]])} already. Remove one of the rows."
        )
    return names


def _missing(table: Table, root: str, rows: Sequence[int]) -> str:
    """The error for rows without an image, with the folder near the root from which the first of their paths starts."""
    path = table.columns["path"][rows[0]].strip()
    parent, _, name = path.rpartition("/")
    near = [
        os.path.dirname(root),
        os.path.dirname(table.file),
        "",
        *(os.path.join(root, inner) for inner in class_folders(root)[:100]),
    ]
    other = _Folder(root, parent).find(composed(name[: len(name) - len(file_extension(name))]))
    hint = f"There is {other}: extensions may be left out of the table. Or set" if other else "Set"
    found = (folder or "." for folder in near if _Folder(folder, parent or ".").find(composed(name)))
    return (
        f"{table.row(rows[0])}: there is no image {shorten(os.path.join(root, path), 300)}, as for {len(rows):,} of {len(table.lines):,} rows in all. "
        f"{hint} data.root={next(found, 'FOLDER that the paths start from')}, or remove the rows."
    )
