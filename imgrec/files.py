"""Image files below a folder, and files that are written whole or not at all. Imports no torch."""

import os
from collections.abc import Iterator
from pathlib import Path

from imgrec.errors import DataError

# torchvision.datasets.folder.IMG_EXTENSIONS
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def walk_images(folder: str) -> Iterator[str]:
    seen: set[str] = set()  # a link may lead back up
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        new = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        folders[:] = [name for name in new if name[0] != "."]
        yield from (os.path.join(parent, name) for name in names if name.lower().endswith(IMAGE_EXTENSIONS) and name[0] != ".")


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; DataError where the disk refuses."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}. Make room there or name another file.") from error


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: a reader sees all of it or the one before."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
