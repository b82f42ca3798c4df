"""Images to leave out, by a list of their names: data.skip_list."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imgrec.config.schema import Split
from imgrec.data.file_index import ImageNames, pack_names
from imgrec.data.folder import ImageFiles
from imgrec.data.split_record import composed_names, show_name
from imgrec.errors import DataError

LIST_MARK = b"# imgrec skip list"  # how the first line of ours begins


def names_below(root: str, images: ImageFiles) -> ImageNames:
    """The names of images relative to `root`, which may be a folder above theirs."""
    folder = os.path.relpath(images.root, root)
    return images.names if folder == "." else np.strings.add(os.fsencode(folder) + b"/", images.names)


def write_skip_list(file: BinaryIO, names: Iterable[bytes]) -> None:
    """A name a line, after a line that says what they are."""
    file.write(LIST_MARK + b": names below data.root, read with data.skip_list=FILE\n")
    file.writelines(name + b"\n" for name in names)


def read_skip_list(path: str) -> ImageNames:
    """The names, without empty lines and the first line of ours; DataError for a file that cannot be read."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"data.skip_list={path} cannot be read: {error.strerror}. Set data.skip_list=FILE with a name on each line, or null."
        ) from error
    first = int(lines[0].startswith(LIST_MARK))
    return np.array([name for line in lines[first:] if (name := line.rstrip(b"\r"))], dtype=np.bytes_)


def without_listed(splits: dict[Split, ImageFiles], classes: tuple[str, ...], root: str, path: str) -> dict[Split, ImageFiles]:
    """The splits below `root` without the images in the list, whichever form of Unicode their names have.

    DataError for a name that is none of theirs, and where nothing is left of a split or of a class of train.
    """
    listed = _composed(read_skip_list(path))
    names = {split: _composed(names_below(root, images)) for split, images in splits.items()}
    unknown = listed[~np.isin(listed, np.concatenate(list(names.values())))] if len(listed) else listed
    if len(unknown):
        more = f" and {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
        raise DataError(
            f"data.skip_list={path} has {show_name(unknown[0])}{more}, but {root} has no such image. "
            f"Remove the line, or write the list anew: imgrec check data.root={root} write=skip."
        )
    left = {split: images.take(np.flatnonzero(~np.isin(names[split], listed))) for split, images in splits.items()}
    empty = np.flatnonzero(np.bincount(left["train"].labels, minlength=len(classes)) == 0)
    if len(empty) or not all(map(len, left.values())):
        what = f"class {classes[empty[0]]} of train" if len(empty) else next(f"{split}" for split in left if not len(left[split]))
        raise DataError(f"data.skip_list={path} leaves no image of {what}. Remove some of its lines, or set data.skip_list=null.")
    return left


def _composed(names: ImageNames) -> ImageNames:
    found = composed_names(names) if len(names) else pack_names([])
    assert found is not None
    return found
