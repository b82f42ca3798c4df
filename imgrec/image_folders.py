"""Which image files a folder holds. Imports no torch."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from imgrec.errors import unreadable
from imgrec.files import IMAGE_EXTENSIONS, file_extension

# Folders that systems leave, beside those whose names begin with a dot, in lower case: archives and servers of macOS,
# Windows, Linux, Android, Python, and network disks of Synology, QNAP and NetApp (github.com/github/gitignore, Global/*).
SYSTEM_FOLDERS = {
    "__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder",
    "$recycle.bin", "recycler", "system volume information", "found.000", "msocache",
    "lost+found", "lost.dir", "__pycache__", "node_modules", "_gsdata_",
    "@eadir", "@tmp", "@sharebin", "@sharesnap", "@synoresource", "#recycle", "#snapshot",
    "@recycle", "@recently-snapshot", "@transcode", "~snapshot",
}  # fmt: skip
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # of file managers, in lower case

Names = TypeVar("Names")


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is a system's, not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


class Listing(NamedTuple, Generic[Names]):
    """What a folder holds itself, without hidden names."""

    images: Names
    folders: tuple[str, ...]  # names, sorted, also of links to folders
    links: frozenset[str]  # those of the names that are links
    ignored: dict[str, int]  # the other files, by their extension
    filled: bool  # whether it holds a file or a link that no system left


def list_folder(folder: str) -> Listing[list[str]]:
    """A link by the name of an image that leads nowhere is an image, which cannot be read.

    DataError for a folder that cannot be listed, and for another link in it that leads to itself.
    """
    images: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    ignored: Counter[str] = Counter()
    filled = False
    with readable_folder(folder), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_symlink():
                links.append(name)
                if file_extension(name) in IMAGE_EXTENSIONS and not os.path.exists(entry.path):
                    images.append(name)
                    continue
            # The kinds of entries are known from the listing: no system call for each file.
            if entry.is_file():
                if (extension := file_extension(name)) in IMAGE_EXTENSIONS:
                    images.append(name)
                    continue
                ignored[extension or "without extension"] += 1
            elif entry.is_dir() and not is_hidden(name):
                folders.append(name)
            filled = filled or not (
                entry.is_dir(follow_symlinks=False) or is_hidden(name) or name.lower() in SYSTEM_FILES
            )  # fmt: skip
    return Listing(images, tuple(sorted(folders)), frozenset(links), ignored, filled or bool(images))


def walk_folders(
    root: str, folder: str, list_all: Callable[[Sequence[str]], Iterable[Listing[Names]]]
) -> Iterator[tuple[str, Listing[Names]]]:
    """ROOT/FOLDER and the folders below it, relative to ROOT, without hidden ones and SYSTEM_FOLDERS.

    Links are followed, except to a folder that contains the link. list_all: the listings of folders, as many as are known at once.
    """
    level: list[tuple[str, tuple[str, ...]]] = [(folder, ())]  # folders, and the folders with the links that led to them
    while level:
        listings = list_all([path for path, _ in level])
        deeper: list[tuple[str, tuple[str, ...]]] = []
        for (parent, via), listing in zip(level, listings, strict=True):
            yield parent, listing
            for name in listing.folders:
                path = f"{parent}/{name}" if parent else name
                if name not in listing.links:
                    deeper.append((path, via))
                elif not _contains_any(os.path.join(root, path), folders := (*via, os.path.join(root, parent))):
                    deeper.append((path, folders))
        level = deeper


def find_images(root: str, folder: str = "", *, ignored: Counter[str] | None = None) -> list[str]:
    """The image files below ROOT/FOLDER at any depth, as `walk_folders` goes: paths relative to ROOT, sorted.

    `ignored` counts the other files by their extension. DataError for a folder that cannot be listed.
    """
    images: list[str] = []
    for parent, listing in walk_folders(root, folder, lambda paths: (list_folder(os.path.join(root, path)) for path in paths)):
        images += [f"{parent}/{name}" for name in listing.images] if parent else listing.images
        if ignored is not None:
            ignored.update(listing.ignored)
    return sorted(images)


@contextmanager
def readable_folder(folder: str) -> Iterator[None]:
    """DataError for an OSError while a folder is listed: with the entry in it that cannot be followed, or the folder itself."""
    try:
        yield
    except OSError as error:
        raise unreadable(error.filename or folder, error, "Fix it or remove it.") from error


def _contains_any(folder: str, others: tuple[str, ...]) -> bool:
    top = os.path.join(os.path.realpath(folder), "")
    return any(os.path.join(os.path.realpath(other), "").startswith(top) for other in others)
