"""The files that a command line names: images and the checkpoint. Imports no torch, so that a wrong path is refused at once."""

import csv
import glob
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from imgrec.errors import CheckpointError, DataError
from imgrec.files import EXTENSIONS_TEXT
from imgrec.image_folders import find_images

CHECKPOINTS = "checkpoints"  # their folder in a run directory
EXPLAINED = "explained"  # the folder of `imgrec explain`, in a run directory or in the current one
EXPLAINED_FILE = "explain.json"  # there, of the images that the report of the run shows
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # the two checkpoints of a run that it can be resumed from
BEST = "best.ckpt"  # the checkpoint that is tested; without the state of an optimizer, so nothing is resumed from it


def expand_files(paths: str | Sequence[str], key: str = "files") -> list[str]:
    """The files of paths, folders and patterns in their order, each once; the image files of a folder and the matches of a pattern are sorted.

    key: of the command line, for errors. DataError for a name that does not exist, a pattern that matches nothing, a folder without images,
    and no path at all.
    """
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    if not paths:
        raise DataError(f"{key}=[]: the list has no file. Set {key}= to an image, a folder or a pattern.")
    return list(dict.fromkeys(file for path in paths for file in _expand(path, key)))


def _expand(path: str, key: str) -> list[str]:
    if os.path.isdir(path):
        if images := _images_in(path):
            return images
        raise DataError(
            f"{key}={path}: this folder has no images (names that end in {EXTENSIONS_TEXT}). Set {key}=FOLDER with images."
        )
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path):
        raise DataError(f"{key}={path}: it is no regular file. Set {key}= to an image, a folder or a pattern.")
    if not glob.has_magic(path):
        hint = f"For several files type {key}=[{path}]." if "," in path else f"Set {key}= to an image, a folder or a pattern."
        raise DataError(f"{key}={path}: there is no such file or folder. {hint}")
    matches = sorted(glob.glob(path, recursive=True))
    # A pattern that matches folders alone means the images in them; `**` matches both, and then the files are meant.
    files = [match for match in matches if not os.path.isdir(match)] or [
        file for folder in matches for file in _images_in(folder)
    ]
    if not files:
        raise DataError(f"{key}={path}: no file matches this pattern. Put it in quotes, so that the shell does not expand it.")
    return files


def _images_in(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in find_images(folder)]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) of a run directory."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder. Name a checkpoint (.ckpt) or a run directory such as runs/NAME/ID."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: it is a device, a pipe or a socket. Name a checkpoint (.ckpt) or a run directory such as runs/NAME/ID."
        )
    for name in (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", BEST, LAST):
        if (path / name).is_file():
            return path / name
    if (best := _best_of_sweep(path)) is not None:
        raise CheckpointError(
            f"{path}: this folder holds the runs of a sweep. Name one of them, such as its best, {path / best}."
        )
    if (path / "1" / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{path}: this folder holds runs. Name one of them, such as {path / '1'}.")
    raise CheckpointError(
        f"{path}: no {CHECKPOINTS}/{BEST} or {CHECKPOINTS}/{LAST} in this folder. "
        "Name a run directory such as runs/NAME/ID, or a .ckpt file."
    )


def _best_of_sweep(path: Path) -> str | None:
    """The folder of the run on the first row of a sweep's table; None where there is none."""
    try:
        with (path / "sweep.csv").open(newline="") as file:
            first = next(csv.DictReader(file), {})
    except (OSError, ValueError, csv.Error):
        return None
    return Path(first["folder"]).name if first.get("rank") == "1" and first.get("folder") else None


def suspects_command(path: Path) -> str:
    """Lists the images of a run, or of folds, whose label is probably wrong."""
    return f"imgrec check {shlex.quote(f'ckpt={path}')} suspects=true"
