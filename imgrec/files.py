"""Image files below a folder, and files that are written whole or not at all. Imports no torch."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imgrec.errors import DataError

# torchvision.datasets.folder.IMG_EXTENSIONS, without the import of torch
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


# Folders that systems leave, beside those whose names begin with a dot, in lower case: archives and servers of macOS,
# Windows, Linux, Android, Python, and network disks of Synology, QNAP and NetApp (github.com/github/gitignore, Global/*).
SYSTEM_FOLDERS = {
    "__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder",
    "$recycle.bin", "recycler", "system volume information", "found.000", "msocache",
    "lost+found", "lost.dir", "__pycache__", "node_modules", "_gsdata_",
    "@eadir", "@tmp", "@sharebin", "@sharesnap", "@synoresource", "#recycle", "#snapshot",
    "@recycle", "@recently-snapshot", "@transcode", "~snapshot",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is a system's, not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS decomposes those of files, and its archives carry that elsewhere."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_directory_name(name: str) -> bool:
    """Whether `name` is one directory's name, so that a path that ends in it stays inside its parent."""
    return name not in ("", ".", "..") and "/" not in name


def find_images(root: str, folder: str = "") -> list[str]:
    """The image files below ROOT/FOLDER at any depth, without hidden ones and SYSTEM_FOLDERS: paths relative to ROOT, sorted.

    Links are followed, except to a folder that contains the link. DataError for a folder that cannot be listed.
    """
    images: list[str] = []
    pending: list[tuple[str, tuple[str, ...]]] = [(folder, ())]  # folders, and the folders with the links that led to them
    while pending:
        parent, via = pending.pop()
        try:
            with os.scandir(os.path.join(root, parent)) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    path = f"{parent}/{name}" if parent else name
                    # The kinds of entries are known from the listing: no system call for each file.
                    if name.lower().endswith(IMAGE_EXTENSIONS) and entry.is_file():
                        images.append(path)
                    elif entry.is_dir() and not is_hidden(name):
                        if not entry.is_symlink():
                            pending.append((path, via))
                        elif not _contains_any(entry.path, folders := (*via, os.path.dirname(entry.path))):
                            pending.append((path, folders))
        except OSError as error:
            raise DataError(f"{os.path.join(root, parent)} cannot be listed: {error.strerror}. Fix it or remove it.") from error
    return sorted(images)


def _contains_any(folder: str, others: tuple[str, ...]) -> bool:
    top = os.path.join(os.path.realpath(folder), "")
    return any(os.path.join(os.path.realpath(other), "").startswith(top) for other in others)


@contextmanager
def atomic_file(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file open for writing that becomes `path` when the block ends: a reader sees all of it or the previous file.

    previous: a name for the previous file, which is replaced without one. After an exception the previous file stays.
    The content is on the disk before the file is renamed: a power failure leaves no empty file.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if previous is not None and path.exists():
        path.replace(previous)
    unfinished.replace(path)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a small file with `atomic_file`; DataError where that fails."""
    try:
        with atomic_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Free disk space, or choose another path.") from error
