"""The index of a folder of tar shards: where each image stands, its label, its name and its checksum."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.errors import DataError, shorten
from imgrec.files import atomic_write, composed

INDEX = "index.npz"  # in the folder of the shards
VERSION = 1
MOST_SHARD = 2**52  # bytes; the blocks of a remote one have 32 bits for their number, 2**20 bytes each
# The place of an image: row of the shard in the index, bytes from its start, bytes, and CRC-32 of these (-1: not known).
PLACE = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("checksum", "<i8")])
Places = NDArray[np.void]


class PackedSplit(NamedTuple):
    """The images of a split in their order, which is not that in the shards."""

    labels: Indices
    names: NDArray[np.bytes_]
    places: Places

    def take(self, rows: NDArray[np.generic]) -> "PackedSplit":
        return PackedSplit(*(column[rows] for column in self))


class ShardIndex(NamedTuple):
    """What a folder of shards holds; plain arrays in the file, 50 bytes an image and its name."""

    classes: tuple[str, ...]
    shards: tuple[str, ...]  # paths relative to the folder
    sizes: Indices  # bytes of each shard
    checksums: Indices  # CRC-32 of each shard (-1: not known)
    splits: dict[Split, PackedSplit]
    source: str  # a hash of the images and settings that it was packed from

    def write(self, folder: Path) -> None:
        atomic_write(folder / INDEX, self.pack())

    @classmethod
    def read(cls, folder: Path) -> "ShardIndex":
        """DataError for a file that `write` did not make."""
        path = folder / INDEX
        try:
            return cls.unpack(path.read_bytes(), path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Fix it, or pack the images again.") from error

    def pack(self) -> bytes:
        """The content of the file."""
        header = {"version": VERSION, "classes": self.classes, "shards": self.shards, "source": self.source}
        arrays: dict[str, NDArray[np.generic]] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "sizes": self.sizes,
            "checksums": self.checksums,
        }
        for name, split in self.splits.items():
            arrays |= {f"{name}_labels": split.labels, f"{name}_names": split.names, f"{name}_places": split.places}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def unpack(cls, content: bytes, path: Path | str) -> "ShardIndex":
        """DataError, with the path, for what `pack` did not make."""
        try:
            arrays = _arrays(content)
            header = json.loads(arrays["header"].tobytes())
            if header["version"] != VERSION:
                version = shorten(header["version"])
                raise DataError(f"{path} has version {version}, not {VERSION}. Read it with the imgrec that wrote it.")
            splits: dict[Split, PackedSplit] = {
                name: PackedSplit(*(arrays[f"{name}_{column}"] for column in PackedSplit._fields))
                for name in get_args(Split)
                if f"{name}_labels" in arrays
            }
            index = cls(
                tuple(map(composed, header["classes"])),
                tuple(header["shards"]),
                arrays["sizes"],
                arrays["checksums"],
                splits,
                header["source"],
            )
        except DataError:
            raise
        except Exception as error:  # the parsers of zipfile, numpy and json raise any
            raise DataError(f"{path} is damaged or no index of shards. Remove it, and pack the images again.") from error
        index.check(path)
        return index

    def check(self, path: Path | str) -> None:
        """DataError where the arrays do not fit to one another, an image outside its shard, say, or a shard is outside the folder."""
        for shard in self.shards:
            if not _is_below(shard):
                raise DataError(f"{path} names the shard {shorten(shard)}, which is not below it. Do not use this index.")
        # The order matters: each line holds only where those above do.
        fits = (
            len(set(self.classes)) == len(self.classes)
            and _is_column(self.sizes, np.dtype(np.int64))
            and _is_column(self.checksums, np.dtype(np.int64))
            and len(self.shards) == len(self.sizes) == len(self.checksums)
            and bool(((self.sizes > 0) & (self.sizes <= MOST_SHARD)).all())
            and len(self.splits) > 0
            and all(map(self._split_fits, self.splits.values()))
        )
        if not fits:
            raise DataError(f"{path} does not fit to itself. Remove it, and pack the images again.")

    def _split_fits(self, split: PackedSplit) -> bool:
        labels, names, places = split
        if not (
            _is_column(labels, np.dtype(np.int64)) and names.ndim == 1 and names.dtype.kind == "S" and _is_column(places, PLACE)
        ):
            return False
        if not (len(labels) == len(names) == len(places) > 0 and names.itemsize):
            return False
        if not ((labels >= 0) & (labels < len(self.classes))).all():
            return False
        if np.count_nonzero(names.view(np.uint8)) != np.strings.str_len(names).sum():  # no name has a zero, which files have not
            return False
        shard, offset, length = places["shard"], places["offset"], places["length"]
        if not ((shard >= 0) & (shard < len(self.sizes)) & (offset >= 0) & (length >= 0)).all():
            return False
        return bool((length <= self.sizes[shard] - offset).all())  # not offset + length, which may overflow


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an archive, which has a checksum of each. ValueError where they would take more memory than the archive."""
    entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
    if sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("compressed, which `pack` does not do")
    if int.from_bytes(content[-12:-10], "little") != len(entries):  # zipfile ends early at an entry that is damaged
        raise ValueError("fewer arrays than the archive says")
    return dict(np.load(io.BytesIO(content), allow_pickle=False))


def _is_below(shard: object) -> bool:
    """Whether this is the path of a file below the folder of the index."""
    if not isinstance(shard, str) or "\0" in shard or "://" in shard or not {"", ".", ".."}.isdisjoint(shard.split("/")):
        return False
    try:
        os.fsencode(shard)
    except UnicodeEncodeError:
        return False
    return True


def _is_column(array: NDArray[np.generic], kind: np.dtype[Any]) -> bool:
    return array.ndim == 1 and array.dtype == kind
