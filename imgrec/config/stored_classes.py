"""The classes of a finished run, as its result.json has them: what does not fit them is refused before torch reads its checkpoint."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from imgrec.config.plain_data import read_plain
from imgrec.config.split_folders import class_folders
from imgrec.errors import DataError, did_you_mean, first_names
from imgrec.files import composed
from imgrec.image_folders import find_images
from imgrec.paths import CHECKPOINTS


def stored_classes(checkpoint: Path) -> tuple[str, ...] | None:
    """In the order of the labels; None for a checkpoint outside its run, and where no result.json says them."""
    file = checkpoint.parent.parent / "result.json"
    if checkpoint.parent.name != CHECKPOINTS or not file.is_file():
        return None
    with suppress(DataError):  # the checkpoint has them too
        match read_plain(file, fix=""):
            case {"images": {"train": dict(counts)}}:
                return tuple(counts)
    return None


def folder_classes(folder: str, known: Sequence[str]) -> list[str]:
    """The classes of the folders in a folder. One that is not known is none without images: it is listed at any depth."""
    named = {name: composed(name) for name in class_folders(folder)}
    return [one for name, one in named.items() if one in known or find_images(os.path.join(folder, name))]


def check_class_folders(root: str, names: Collection[str], classes: Sequence[str]) -> None:
    """DataError for the name of a class folder in ROOT that is none of the classes."""
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(
            f"{root} has the class {unknown[0]}, but train does not ({first_names(classes, 10)}).{did_you_mean(unknown[0], classes)} "
            "Rename the folder, or add the class to train."
        )


def check_teacher_classes(teacher: str, known: Sequence[str], classes: Sequence[str]) -> None:
    """DataError where the teacher, which knows these classes, does not know all `classes` of the data."""
    if missing := [name for name in classes if name not in known]:
        raise DataError(
            f"distill.teacher={teacher}: of the {len(classes)} classes of the data it does not know {first_names(missing, 3)}. "
            "Set distill.teacher=RUN that was trained with these classes."
        )
