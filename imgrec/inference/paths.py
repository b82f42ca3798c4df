"""The files of a command line: images to read, the checkpoint, files to write. Imports no torch, so that a wrong path is refused at once."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.files import EXTENSIONS_TEXT, find_images


def expand_files(paths: str | Sequence[str]) -> list[str]:
    """The files of paths, folders and patterns in their order, each once; the image files of a folder and the matches of a pattern are sorted.

    DataError for a name that does not exist, a pattern that matches nothing, a folder without images.
    """
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    return list(dict.fromkeys(file for path in paths for file in _expand(path)))


def _expand(path: str) -> list[str]:
    if os.path.isdir(path):
        if images := _images_in(path):
            return images
        raise DataError(
            f"files={path}: this folder has no images (names that end in {EXTENSIONS_TEXT}). Set files=FOLDER with images."
        )
    if os.path.exists(path):
        return [path]
    if not glob.has_magic(path):
        hint = f"For several files type files=[{path}]." if "," in path else "Set files= to an image, a folder or a pattern."
        raise DataError(f"files={path}: there is no such file or folder. {hint}")
    matches = sorted(glob.glob(path, recursive=True))
    # A pattern that matches folders alone means the images in them; `**` matches both, and then the files are meant.
    files = [match for match in matches if not os.path.isdir(match)] or [
        file for folder in matches for file in _images_in(folder)
    ]
    if not files:
        raise DataError(f"files={path}: no file matches this pattern. Put it in quotes, so that the shell does not expand it.")
    return files


def _images_in(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in find_images(folder)]


def check_output(key: str, path: Path, suffixes: Sequence[str], *, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """ConfigError unless `path` can be written: a known suffix, in a folder that can be made, and no file there that imgrec did not write."""
    if path.suffix not in suffixes:
        raise ConfigError(
            f"{key}={path}: the name must end in {' or '.join(suffixes)}. Set {key}={path.with_suffix(suffixes[0])}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: its folder cannot be made: {error.strerror}. Set {key}=FILE in another folder."
        ) from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{key}={path} cannot be written. Set {key}=FILE in a folder that you can write to.")
    if path.exists() and path.stat().st_size and not overwrite and not ours(path):
        raise ConfigError(f"{key}={path} exists, and imgrec did not write it. Set {key}=ANOTHER, or overwrite=true.")


def first_bytes(path: Path) -> bytes:
    """The first 256 bytes of a file, by which `check_output` may know what imgrec wrote."""
    with path.open("rb") as file:
        return file.read(256)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) of a run directory."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder. Name a checkpoint (.ckpt) or a run directory such as runs/NAME/ID."
        )
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: no checkpoints/best.ckpt or checkpoints/last.ckpt in this folder. "
        "Name a run directory such as runs/NAME/ID, or a .ckpt file."
    )
