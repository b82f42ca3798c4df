"""Which image files a command line means, and which file it may write. Imports no torch, so that a wrong name is said at once."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.files import IMAGE_EXTENSIONS, find_images


def expand_files(given: str | Sequence[str]) -> list[str]:
    """Files in the order given, each once: folders walked through and patterns in sorted order, of folders only image files.

    DataError for a name that does not exist, a pattern that matches nothing, a folder without images.
    """
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    return list(dict.fromkeys(file for name in names for file in _expand(name)))


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        found = _images_in(name)
        if not found:
            raise DataError(
                f"files={name}: this folder has no images (names that end in {', '.join(IMAGE_EXTENSIONS)}). Name another."
            )
        return found
    if os.path.exists(name):
        return [name]
    if not glob.has_magic(name):
        several = f" For several files type files=[{name}]." if "," in name else ""
        raise DataError(f"files={name}: there is no such file or folder.{several or ' Name an image, a folder or a pattern.'}")
    matches = sorted(glob.glob(name, recursive=True))
    files = [match for match in matches if not os.path.isdir(match)]
    # A pattern that matches folders alone means the images in them; `**` matches both, and the files are what it is for.
    found = files or [file for folder in matches for file in _images_in(folder)]
    if not found:
        raise DataError(f"files={name}: no file matches this pattern. Put it in quotes, so that the shell passes it on as it is.")
    return found


def _images_in(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in find_images(folder)]


def check_output(key: str, path: Path, suffixes: Sequence[str], *, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """ConfigError unless `path` can be written: its ending, its folder (which is made), and no file of someone else's there."""
    if path.suffix not in suffixes:
        raise ConfigError(
            f"{key}={path}: the name must end in {' or '.join(suffixes)}. Set {key}={path.with_suffix(suffixes[0])}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={path}: its folder cannot be made: {error.strerror}. Name another.") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{key}={path} cannot be written. Set {key}=FILE in a folder of yours.")
    if path.exists() and path.stat().st_size and not overwrite and not ours(path):
        raise ConfigError(f"{key}={path} exists, and imgrec did not write it. Set {key}=ANOTHER, or overwrite=true.")


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) of a run folder."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: there is no such file or folder. Name a checkpoint (.ckpt) or a run folder such as runs/NAME/ID."
        )
    for file in (path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt", path / "best.ckpt", path / "last.ckpt"):
        if file.is_file():
            return file
    raise CheckpointError(
        f"{path}: no checkpoints/best.ckpt or checkpoints/last.ckpt in this folder. Name a run folder such as runs/NAME/ID, or a .ckpt file."
    )
