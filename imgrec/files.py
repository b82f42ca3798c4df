"""Which image files a command line means, and which file it may write. Imports no torch, so that a wrong name is said at once."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from imgrec.errors import ConfigError, DataError

# torchvision.datasets.folder.IMG_EXTENSIONS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def quoted(argv: Sequence[str], keys: Sequence[str]) -> list[str]:
    """`argv` with the values of `keys` quoted for Hydra, whose grammar stumbles over blanks, '=', ',' and '(' in file names.

    Lists and what is quoted already stay, and so does null.
    """
    words = []
    for word in argv:
        key, equals, value = word.partition("=")
        if key in keys and equals and value != "null" and not value.startswith(("[", "'", '"')):
            # A quote is escaped, and backslashes before a quote, also the closing one, are doubled: elsewhere they are themselves.
            text = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), os.path.expanduser(value))
            words.append(f"{key}='{text}'")
        else:
            words.append(word)
    return words


def expand(given: str | Sequence[str]) -> list[str]:
    """Files in the order given, each once: folders walked through and patterns in sorted order, of folders only image files.

    DataError for a name that does not exist, a pattern that matches nothing, a folder without images.
    """
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    return list(dict.fromkeys(file for name in names for file in _expand(name)))


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        found = sorted(_walk(name))
        if not found:
            raise DataError(f"files={name}: this folder has no images (names that end in {', '.join(EXTENSIONS)}). Name another.")
        return found
    if os.path.exists(name):
        return [name]
    if not glob.has_magic(name):
        several = f" For several files type files=[{name}]." if "," in name else ""
        raise DataError(f"files={name}: there is no such file or folder.{several or ' Name an image, a folder or a pattern.'}")
    matches = sorted(glob.glob(name, recursive=True))
    files = [match for match in matches if not os.path.isdir(match)]
    # A pattern that matches folders alone means the images in them; `**` matches both, and the files are what it is for.
    found = files or [file for folder in matches for file in sorted(_walk(folder))]
    if not found:
        raise DataError(f"files={name}: no file matches this pattern. Put it in quotes, so that the shell passes it on as it is.")
    return found


def _walk(folder: str) -> Iterator[str]:
    seen: set[str] = set()  # a link may lead back up
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        new = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        folders[:] = [name for name in new if name[0] != "."]
        yield from (os.path.join(parent, name) for name in names if name.lower().endswith(EXTENSIONS) and name[0] != ".")


def check_out(key: str, path: Path, suffixes: Sequence[str], *, ours: Callable[[Path], bool], overwrite: bool) -> None:
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


def replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; DataError where the disk refuses."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}. Make room there or name another file.") from error


def show(path: str) -> str:
    """A file name that any terminal can print: bytes that are no UTF-8, and control characters, become '?'."""
    return "".join(letter if letter.isprintable() else "?" for letter in path)
