"""Images in tar shards, ROOT/train|val|test/*.tar, read in any order by an index; decoded in the workers of the data loader."""

import io
import mmap
import os
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.data.batch import Indices, Requests
from imgrec.data.decode import Preprocessing, Rows, ScaleError, decode_bytes
from imgrec.data.folder import FileData, FileKeys, ImageFiles, Reading
from imgrec.data.image_data import Splits
from imgrec.data.sampler import Order
from imgrec.data.window import windowed_order
from imgrec.errors import TOO_MANY_OPEN, ConfigError, DataError, SourceError, unreadable
from imgrec.storage.index import INDEX, PackedSplit, ShardIndex
from imgrec.storage.remote import WINDOW_SHARE, Announced, RemoteFiles, is_remote, open_remote
from imgrec.storage.store import ReadError
from imgrec.storage.webdataset import webdataset_index

REMOTE_WINDOW = 8  # shards from which samples are drawn at a time where data.window_shards does not say
MOST_OPEN = 512  # shards of a process, as each takes a file descriptor, of which a process usually may have 1,024
RAW_HEADER = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")  # of a PPM or PGM file, as `imgrec pack format=raw` writes it
MOST_HEADER = 32  # bytes
# Pages are shared with the page cache as long as nobody writes to them. torch wants memory that may be written, and Linux
# would reserve memory for that. (Python 3.13 knows the name.)
MAP_FLAGS = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)  # MAP_NORESERVE


class ShardFiles:
    """The shards of a folder, mapped into memory when they are first read."""

    def __init__(self, folder: str, shards: tuple[str, ...], sizes: Indices) -> None:
        self.folder, self.shards, self.sizes = folder, shards, sizes
        self._open = lru_cache(MOST_OPEN)(self._map)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFiles, (self.folder, self.shards, self.sizes)

    def path(self, shard: int) -> str:
        return os.path.join(self.folder, self.shards[shard])

    def check(self) -> None:
        """DataError for a shard that is missing or not as long as the index says."""
        for shard in range(len(self.shards)):
            with _readable(self.path(shard)):
                self._check_size(shard, os.stat(self.path(shard)).st_size)

    def read(self, place: np.void) -> NDArray[np.uint8]:
        """The bytes of an image."""
        shard, offset, length, _ = place.item()
        file, content = self._open(shard)
        self._check_size(shard, file.size())  # the system kills a process that reads beyond a file's end
        return content[offset : offset + length]

    def fix(self, place: np.void) -> str:
        """What to do about an image that is damaged."""
        return f"Type imgrec pack verify={self.folder} to find all such images."

    def _map(self, shard: int) -> tuple[mmap.mmap, NDArray[np.uint8]]:
        with _readable(self.path(shard)):
            try:
                mapped = self._mapped(shard)
            except OSError as error:
                if error.errno not in TOO_MANY_OPEN:
                    raise
                self._open.cache_clear()  # each holds a file descriptor
                mapped = self._mapped(shard)
        return mapped, np.frombuffer(mapped, dtype=np.uint8)

    def _mapped(self, shard: int) -> mmap.mmap:
        with open(self.path(shard), "rb") as file:
            self._check_size(shard, os.fstat(file.fileno()).st_size)
            return mmap.mmap(file.fileno(), 0, flags=MAP_FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def _check_size(self, shard: int, found: int) -> None:
        if found != self.sizes[shard]:
            raise DataError(
                f"{self.path(shard)} has {found:,} bytes, and by the index {self.sizes[shard]:,}. "
                f"Copy it again, or remove {self.folder} and pack the images again."
            )


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """DataError for a shard that cannot be opened."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error, "Copy it again, or pack the images again.") from error


class ImageShards(ImageFiles):
    """`ImageFiles` whose files are parts of shards; names are those of the files that were packed."""

    def __init__(
        self,
        files: ShardFiles | RemoteFiles,
        packed: PackedSplit,
        *,
        window: int | None,
        preprocessing: Preprocessing,
        **reading: Unpack[Reading],
    ) -> None:
        super().__init__("", packed.names, packed.labels.astype(np.int64), preprocessing=preprocessing, **reading)
        self.files, self.places, self.window = files, packed.places, window
        self.is_far = isinstance(files, RemoteFiles)

    def path(self, index: int) -> str:
        return f"{self.files.path(self.places[index]['shard'])}: {os.fsdecode(self.names[index])}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of an image, which must not be changed."""
        try:
            return self.files.read(self.places[index])
        except ReadError as error:
            raise SourceError(f"{self.path(index)} {error}") from error

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.read(index).tobytes())

    def file_state(self, index: int) -> int:
        return 1  # a shard that changes in a run is damaged

    def decode(self, index: int, rows: Rows | None = None) -> Tensor:
        content, place = self.read(index), self.places[index]
        try:
            return self._pixels(index, content, rows)
        except ScaleError:
            raise
        except DataError as error:
            if is_intact(content, place["checksum"]):
                raise
            damage = error
        fix = self.files.fix(place)
        if self.is_far and is_intact(content := self.read(index), place["checksum"]):  # it was damaged in the cache
            return self._pixels(index, content, rows)
        raise DataError(
            f"{self.path(index)} cannot be read: the shard is damaged there, its checksum is another. {fix}"
        ) from damage

    def _pixels(self, index: int, content: NDArray[np.uint8], rows: Rows | None) -> Tensor:
        if (pixels := raw_pixels(content, self.preprocessing)) is not None:
            return pixels
        return decode_bytes(content.tobytes(), self.path(index), self.preprocessing, self.reading["decoder"], rows)

    def reading_order(self, order: Order, seed: int) -> Order:
        return order if self.window is None else windowed_order(order, self.places["shard"], self.window, seed=seed)

    def reading_rows(self) -> Indices:
        """Those of a shard together, where a window of shards is read at a time."""
        return super().reading_rows() if self.window is None else np.lexsort((self.places["offset"], self.places["shard"]))

    def announced(self, requests: Requests) -> Requests:
        return Announced(requests, self.files, self.places) if isinstance(self.files, RemoteFiles) else requests

    def take(self, rows: Indices) -> Self:
        part = super().take(rows)
        part.places = self.places[rows]
        return part

    def content(self) -> Indices:
        return np.stack([self.places["length"], self.places["checksum"]], axis=1)


def is_intact(content: NDArray[np.uint8], checksum: int) -> bool:
    """Whether bytes have the checksum that was stored, where it was."""
    return checksum < 0 or zlib.crc32(content.data) == checksum


def raw_pixels(content: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor | None:
    """uint8 [C, H, W] of an uncompressed image, not copied; None for other files."""
    header = RAW_HEADER.match(content[:MOST_HEADER].tobytes())
    if header is None:
        return None
    channels, width, height = 3 if header[1] == b"6" else 1, int(header[2]), int(header[3])
    fits = channels == preprocessing["channels"] and 0 < width * height <= preprocessing["max_pixels"]
    if not fits or len(content) != header.end() + width * height * channels:
        return None
    return torch.from_numpy(content[header.end() :].reshape(height, width, channels)).permute(2, 0, 1)


class Shards(FileData):
    """Tar shards: of `imgrec pack`, which have ROOT/index.npz, or of others, whose index is built when they are first read.

    ROOT is a folder or an address, of a server or a bucket. Raises ConfigError too where the window does not fit into the cache.
    """

    def __init__(self, *, root: str, window_shards: int | None, cache_gb: float, **keys: Unpack[FileKeys]) -> None:
        super().__init__(**keys)
        self.root, self.cache_gb = root, cache_gb
        self.window = REMOTE_WINDOW if window_shards is None and is_remote(root) else window_shards

    def describe_classes(self, count: int) -> str:
        return f"{self.root} has {count} classes"

    def read(self) -> Splits:
        index, files = self._open()
        if "train" not in index.splits:
            raise DataError(f"data.root={self.root} has no train split. Pack the images of one too.")
        if isinstance(files, RemoteFiles):
            self._check_window(index)
        splits = {
            name: ImageShards(files, packed, window=self.window, preprocessing=self.preprocessing(), **self.reading)
            for name, packed in index.splits.items()
        }
        if len(splits) == 1:
            return self.cut_test(splits["train"], index.classes)
        return Splits(index.classes, splits["train"], splits.get("val"), splits.get("test"))

    def _open(self) -> tuple[ShardIndex, ShardFiles | RemoteFiles]:
        if is_remote(self.root):
            return open_remote(self.root, int(self.cache_gb * 1e9))
        own = (Path(self.root) / INDEX).is_file()
        index = ShardIndex.read(Path(self.root)) if own else webdataset_index(self.root)
        files = ShardFiles(self.root, index.shards, index.sizes)
        files.check()
        return index, files

    def _check_window(self, index: ShardIndex) -> None:
        """ConfigError where the cache does not hold the shards that are read at a time: each block would be downloaded many times."""
        assert self.window is not None
        largest = (np.sort(index.sizes[np.unique(index.splits["train"].places["shard"])])[::-1] / 1e9).cumsum()
        needed = float(largest[: self.window][-1])
        if needed > WINDOW_SHARE * self.cache_gb:
            fits = int((largest <= WINDOW_SHARE * self.cache_gb).sum())
            raise ConfigError(
                f"data.cache_gb={self.cache_gb:g}: the {min(self.window, len(largest))} shards that are read at a time take up to "
                f"{needed:.3g} GB, and may fill {WINDOW_SHARE:.0%} of it. Set data.cache_gb={ceil(needed / WINDOW_SHARE)}"
                + (f", or data.window_shards={fits} to mix fewer shards." if fits else ".")
            )
