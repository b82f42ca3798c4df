"""What the splits of a run held: stored in its checkpoints, and compared when the run is resumed or evaluated."""

import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.data.file_index import is_ascii
from imgrec.data.image_set import ImageSet
from imgrec.errors import first_names, printable, shorten
from imgrec.files import composed

SHOWN = 3  # changes that a sentence names
MOST_BYTES = 1 << 31  # of an unpacked record: what 30 million files take


class SplitRecord(NamedTuple):
    """One split; see ImageSet for names and content."""

    labels: Indices
    names: NDArray[np.bytes_] | None
    content: Indices


class DataRecord(NamedTuple):
    """The class list and the splits that there are."""

    classes: tuple[str, ...]
    splits: dict[Split, SplitRecord]

    @classmethod
    def of(cls, classes: tuple[str, ...], splits: Mapping[Split, ImageSet], *, content: Collection[Split]) -> "DataRecord":
        """content: the splits whose content is recorded, which costs a system call for each file."""
        none = np.zeros((0, 1), dtype=np.int64)
        parts = {
            name: SplitRecord(images.labels, composed_names(images.names), images.content() if name in content else none)
            for name, images in splits.items()
        }
        return cls(classes, parts)

    def digest(self) -> str:
        """A hash of the class list and of each split's labels and names, in order: two differ by chance once in 2**32.

        Checksums of the arrays take half of the time of a hash of them: 10 ms for a million files.
        """
        arrays = [(name, array) for name, split in self.splits.items() for array in (split.labels, split.names)]
        said = [(name, array is None or (len(array), zlib.crc32(np.ascontiguousarray(array).data))) for name, array in arrays]
        return hashlib.sha1(repr((self.classes, said)).encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()

    def pack(self) -> Tensor:
        """One uint8 tensor without the class list, which a checkpoint has; 6 MB for the 1.28 million files of ImageNet."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, split in self.splits.items():
            arrays[f"{name}_labels"], arrays[f"{name}_content"] = split.labels.astype(np.int32), split.content
            if split.names is not None:
                arrays[f"{name}_names"] = split.names
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return torch.frombuffer(bytearray(zlib.compress(buffer.getbuffer(), 1)), dtype=torch.uint8)

    @classmethod
    def unpack(cls, classes: Sequence[str], packed: Tensor) -> "DataRecord":
        """ValueError for what `pack` did not make."""
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(packed.numpy().tobytes(), MOST_BYTES)
            arrays = dict(np.load(io.BytesIO(content), allow_pickle=False))
            splits: dict[Split, SplitRecord] = {
                name: SplitRecord(
                    arrays[f"{name}_labels"].astype(np.int64), arrays.get(f"{name}_names"), arrays[f"{name}_content"]
                )
                for name in get_args(Split)
                if f"{name}_labels" in arrays
            }
        except Exception as error:  # zlib, zipfile and NumPy have many kinds
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for name, (labels, names, contents) in splits.items():
            named = names is None or (names.dtype.kind == "S" and names.shape == labels.shape)
            known = labels.ndim == 1 and not ((labels < 0) | (labels >= len(classes))).any()
            if not (named and known and contents.ndim == 2 and contents.dtype == np.int64):
                raise ValueError(f"the arrays of {name} do not fit")
        return cls(tuple(classes), splits)


class Changes(NamedTuple):
    """Images by what became of them, and the first of them in words."""

    counts: Counter[str]
    first: list[str]

    def __str__(self) -> str:
        """'2 new, 1 gone (new ant/3.jpg in train, ...)'"""
        counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        return f"{counts} ({first_names(self.first, SHOWN)})"


def find_changes(then: DataRecord, now: DataRecord) -> Changes:
    """What `now` has otherwise than `then`, their class lists being the same.

    Files are compared by name, size, label and order, images in memory by a checksum of each split.
    """
    counts: Counter[str] = Counter()
    first: list[str] = []
    for split in get_args(Split):
        for what, count, names in _split_changes(then.splits.get(split), now.splits.get(split)):
            counts[what] += count
            first += [f"{what} {show_name(name)} in {split}" for name in names[: SHOWN + 1]] or [f"{what} {split}"]
    return Changes(counts, first)


def trained_on(then: DataRecord, now: DataRecord, split: Split) -> list[bytes]:
    """Names of images that went from train to `split`: files of the same name, and of the same size where it is known."""
    was, held = then.splits["train"], now.splits.get(split)
    if was.names is None or held is None or held.names is None:
        return []
    _, old, new = np.intersect1d(was.names, held.names, assume_unique=True, return_indices=True)
    names = held.names[new]
    moved = ~_replaced(_rows(was.content, old), _rows(held.content, new))
    for others in (now.splits["train"], then.splits.get(split)):
        if others is not None and others.names is not None:
            moved &= ~np.isin(names, others.names)
    return list(names[moved].tolist())


def other_classes(then: Sequence[str], now: Sequence[str]) -> str:
    """'4 classes, not the 3 of the run (new: wolf)', or nothing where the class lists are the same."""
    if tuple(then) == tuple(now):
        return ""
    new, gone = sorted(set(now) - set(then)), sorted(set(then) - set(now))
    parts = [f"{what}: {first_names(names, SHOWN)}" for what, names in (("new", new), ("gone", gone)) if names]
    return f"{len(now)} classes, not the {len(then)} of the run ({'; '.join(parts) or 'in another order'})"


def _split_changes(then: SplitRecord | None, now: SplitRecord | None) -> list[tuple[str, int, Sequence[bytes]]]:
    """What became of images, how many they are, and their names, where they have some."""
    if then is None or now is None:
        whole = now or then
        return [] if whole is None else [("gone" if now is None else "new", len(whole.labels), [])]
    if then.names is None or now.names is None:
        same = then.names is now.names and np.array_equal(then.labels, now.labels)
        same = same and not _replaced(then.content, now.content).any()
        return [] if same else [("replaced", len(now.labels), [])]
    if same := np.array_equal(then.names, now.names):
        old = new = np.arange(len(then.names))
    else:
        _, old, new = np.intersect1d(then.names, now.names, assume_unique=True, return_indices=True)
    changes = {
        "new": np.delete(now.names, new),
        "gone": np.delete(then.names, old),
        "replaced": now.names[new[_replaced(_rows(then.content, old), _rows(now.content, new))]],
        "of another class": now.names[new[then.labels[old] != now.labels[new]]],
    }
    found = [(what, len(names), names.tolist()) for what, names in changes.items() if len(names)]
    return found or ([] if same else [("in another order", len(now.names), [])])


def _rows(content: Indices, rows: Indices) -> Indices:
    return content[rows] if len(content) else np.full((len(rows), 1), -1)


def _replaced(then: Indices, now: Indices) -> NDArray[np.bool_]:
    """Where both are known and differ."""
    return np.asarray(((then != now) & (then >= 0) & (now >= 0)).any(axis=1))


def composed_names(names: NDArray[np.bytes_] | None) -> NDArray[np.bytes_] | None:
    """The names by which images are known: in Unicode's composed form, so that a copy of the folder has the same."""
    if names is None or is_ascii(names):
        return names
    text = os.fsdecode(b"\0".join(names.tolist()))  # one call for all of them; no name has a zero byte
    return np.array(os.fsencode(composed(text)).split(b"\0"), dtype=np.bytes_)


def show_name(name: bytes) -> str:
    return shorten(printable(os.fsdecode(name)))
