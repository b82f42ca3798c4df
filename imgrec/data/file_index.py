"""The image files below a folder. What its directories hold is kept between runs, and listed anew where one has changed."""

import hashlib
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.data.cache import cache_folder, write_cached
from imgrec.files import on_progress
from imgrec.image_folders import Listing, list_folder, readable_folder, walk_folders

LEAST_IMAGES = 10_000  # of a folder whose listing is kept: fewer are listed in 20 ms
# A directory that changed so recently is listed anew the next time: file systems count time in steps of up to two seconds,
# so an entry of the same step would not show.
SETTLED_NS = 10 * 10**9
ALONE_S = 0.05  # in which the states of 10,000 directories of a local disk are read, or of 1,000 on a busy machine
THREADS = 16  # that list directories: on a network's disk each waits for the answer

# A checksum of all that follows; the bytes of the table of folders, which comes next; and those of each name, which come last.
LISTING_HEADER, CHECKED = struct.Struct("<QQQ"), 8
State = tuple[int, ...]
ImageNames = NDArray[np.bytes_]


class _Folder(NamedTuple):
    """A directory; state: what tells whether it is still the same, None where nothing does."""

    state: State | None
    listing: Listing[ImageNames]  # images: paths relative to the root, sorted


class FileIndex:
    """What the folders below `root` hold, as `find_images` sees them. A folder is looked at once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._cache = _cache_file(root)
        self._kept = {} if self._cache is None else _read(self._cache)
        self._folders: dict[str, _Folder] = {}

    def listing(self, folder: str) -> Listing[ImageNames]:
        if folder not in self._folders:
            for _ in walk_folders(self.root, "", self._list_all):  # all at once, which threads do
                pass
            self._list_all([folder])  # a link to a folder above is none of them
        return self._folders[folder].listing

    def has_files(self, folder: str) -> bool:
        """Whether it, or a folder in it, holds a file or a link that no system left."""
        listing = self.listing(folder)
        inside = (f"{folder}/{name}" for name in listing.folders if name not in listing.links)
        return listing.filled or any(map(self.has_files, inside))

    def find(self, folder: str = "", *, ignored: Counter[str] | None = None) -> ImageNames:
        """`find_images` of the root, as bytes."""
        listings = {folder: self.listing(folder)}
        if listings[folder].folders:
            listings = dict(walk_folders(self.root, folder, self._list_all))
        if ignored is not None:
            for listing in listings.values():
                for extension, count in listing.ignored.items():
                    ignored[extension] += count
        if len(listings) == 1:
            return listings[folder].images
        names = np.concatenate([listings[path].images for path in sorted(listings, key=lambda path: f"{path}/")])
        if (names[:-1] > names[1:]).any() or not is_ascii(names):  # the order of bytes is that of letters only for ASCII
            names = pack_names(sorted(map(os.fsdecode, names.tolist())))
        return names

    def outline(self) -> list[tuple[str, tuple[str, ...], bool]]:
        """What was looked at, beside the images: each folder, the folders in it, and whether it holds a file that no system left."""
        return [(path, found.folders, found.filled) for path, (_, found) in sorted(self._folders.items())]

    def keep(self) -> None:
        """Write what was listed anew into the cache, if it is worth that."""
        settled = {path: folder for path, folder in self._folders.items() if folder.state is not None}
        new = sum(len(folder.listing.images) for path, folder in settled.items() if folder is not self._kept.get(path))
        if self._cache is not None and new and sum(len(folder.listing.images) for folder in settled.values()) >= LEAST_IMAGES:
            _write(self._cache, settled)

    def _list_all(self, folders: Sequence[str]) -> list[Listing[ImageNames]]:
        missing = [folder for folder in folders if folder not in self._folders]
        each = max(1, -(-len(missing) // (4 * THREADS)))
        for part, found in self._looked([missing[first : first + each] for first in range(0, len(missing), each)]):
            self._folders.update(zip(part, found, strict=True))
            on_progress.get()("listing images", sum(len(folder.listing.images) for folder in found), None)
        return [self._folders[folder].listing for folder in folders]

    def _looked(self, parts: list[list[str]]) -> Iterator[tuple[list[str], list[_Folder]]]:
        """The folders of each part; by threads from where it takes long, as they disturb each other where it does not."""
        began = time.monotonic()
        while parts and time.monotonic() < began + ALONE_S:
            yield (part := parts.pop(0)), self._look(part)
        if parts:
            with ThreadPoolExecutor(THREADS, "imgrec-list") as pool:
                yield from zip(parts, pool.map(self._look, parts), strict=True)

    def _look(self, folders: Sequence[str]) -> list[_Folder]:
        with readable_folder(self.root):  # once for all of them: errors name their folders
            return [self._look_at(folder) for folder in folders]

    def _look_at(self, folder: str) -> _Folder:
        path = os.path.join(self.root, folder) if folder else self.root
        state, now = _state(path), time.time_ns()
        if (kept := self._kept.get(folder)) is not None and kept.state == state:
            return kept
        found = list_folder(path)
        prefix = f"{folder}/" if folder else ""
        images = pack_names(prefix + name for name in sorted(found.images))
        # Where a link leads may change elsewhere. Times are the first of a state.
        settled = not found.links and max(state[:2]) < now - SETTLED_NS and _state(path) == state
        listing = Listing(images, found.folders, found.links, found.ignored, found.filled)
        return _Folder(state if settled else None, listing)


def listed_images(root: str, *, ignored: Counter[str] | None = None) -> list[str]:
    """`find_images` by the index of ROOT."""
    files = FileIndex(root)
    names = files.find(ignored=ignored)
    files.keep()
    return list(map(os.fsdecode, names.tolist()))


def _state(path: str) -> State:
    """What changes when an entry comes or goes. The time of a change (ctime) too, as archives and rsync set that of the content back."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size, found.st_nlink


def _cache_file(root: str) -> Path | None:
    folder = cache_folder()
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=16).hexdigest()
    return None if folder is None else folder / f"listing-{name}-2"  # 2: the version of what `_write` writes


def _read(file: Path) -> dict[str, _Folder]:
    """What `_write` wrote; nothing where there is no such file, or it is damaged."""
    try:
        content = np.fromfile(file, np.uint8)  # into large pages, half of the time of `bytes`
        checksum, length, width = LISTING_HEADER.unpack(content[: LISTING_HEADER.size].tobytes())
        if _checksum(content[CHECKED:]) != checksum:
            return {}
        table, packed = np.split(content[LISTING_HEADER.size :], [length])
        names, first = packed.view(f"S{width}"), 0
        kept: dict[str, _Folder] = {}
        for path, state, count, inside, ignored, filled in json.loads(table.tobytes()):
            listing = Listing(names[first : first + count], tuple(inside), frozenset[str](), ignored, filled)
            kept[path] = _Folder(tuple(state), listing)
            first += count
        os.utime(file)  # it is not the oldest
        return kept
    except (OSError, struct.error, ValueError):
        return {}


def _write(file: Path, folders: dict[str, _Folder]) -> None:
    rows = [
        (path, state, len(listing.images), listing.folders, listing.ignored, listing.filled)
        for path, (state, listing) in folders.items()
    ]
    names = np.concatenate([folder.listing.images for folder in folders.values()])
    table = json.dumps(rows).encode()
    table += b" " * (-(len(table) + names.nbytes) % CHECKED)
    content = LISTING_HEADER.pack(0, len(table), names.itemsize)[CHECKED:] + table + names.tobytes()
    write_cached(file, _checksum(np.frombuffer(content, np.uint8)).to_bytes(CHECKED, "little"), content)


def _checksum(content: NDArray[np.uint8]) -> int:
    """The sum of its words of eight bytes: 2 ms for a million names, of which CRC-32 takes 7. The complement, as zeros are damage."""
    return int(~content.view("<u8").sum())


def pack_names(names: Iterable[str]) -> ImageNames:
    """File names as one array: reference counting would copy a list of a million strings into every worker.

    Each takes the bytes of the longest: ImageNet's 1.28 million are 41 MB, and would be 325 MB with one of 254 bytes.
    """
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def join_names(parts: Sequence[ImageNames]) -> ImageNames:
    """np.concatenate; without a copy where they lie one after another in an array, as in the cache: it takes 10 ms a million."""
    whole, starts = parts[0].base, np.array([part.__array_interface__["data"][0] for part in parts])
    ends = starts + [part.nbytes for part in parts]
    if whole is None or any(part.base is not whole for part in parts) or (starts[1:] != ends[:-1]).any():
        return np.concatenate(parts)
    content = whole.view(np.uint8)
    first = starts[0] - content.__array_interface__["data"][0]
    joined: ImageNames = content[first : first + ends[-1] - starts[0]].view(parts[0].dtype)
    return joined


def is_ascii(names: ImageNames) -> bool:
    return not names.size or bool(np.ascontiguousarray(names).view(np.int8).min() >= 0)
