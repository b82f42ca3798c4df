"""Tar shards that others wrote, with KEY.jpg and KEY.cls of each image: their index is built once, and kept in the cache folder."""

import fcntl
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from glob import escape, glob
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from imgrec.config.schema import Split
from imgrec.config.split_folders import split_meant
from imgrec.data.batch import Indices
from imgrec.data.cache import cache_folder, write_cached
from imgrec.data.file_index import pack_names
from imgrec.data.file_splits import label_indices
from imgrec.data.loader import Loader, worker_count
from imgrec.errors import DataError, first_line, first_names, shorten
from imgrec.files import IMAGE_EXTENSIONS, composed, file_extension
from imgrec.locks import lock_file
from imgrec.storage.checksums import open_shard, part_checksum
from imgrec.storage.index import PLACE, PackedSplit, Places, ShardIndex

MOST_LABEL = 1000  # bytes of a .cls file
MOST_NAME = 4096  # letters of a name: each name in an index takes the bytes of the longest
ARCHIVE_END = 2 * tarfile.BLOCKSIZE  # bytes of zeros with which a tar file ends, at least
FEW = 4  # shards that are scanned in this process


class ScannedShard(NamedTuple):
    """The images of a shard in its order."""

    names: list[str]
    labels: list[str]
    places: Places


def webdataset_index(root: str) -> ShardIndex:
    """The index of ROOT/*.tar and ROOT/*/*.tar, from the cache where these have not changed since. DataError where there are none."""
    shards = sorted(os.path.relpath(path, root) for pattern in ("*.tar", "*/*.tar") for path in glob(f"{escape(root)}/{pattern}"))
    if not shards:
        raise DataError(
            f"data.root={root}: there is no index.npz, and no *.tar. Set data.root=DIR that imgrec pack FOLDER out=DIR has made, "
            "or that holds shards of webdataset."
        )
    splits = _splits(root, shards)
    status = [_status(os.path.join(root, shard)) for shard in shards]
    sizes = np.array([one.st_size for one in status], dtype=np.int64)
    source = repr((os.path.realpath(root), shards, [(one.st_size, one.st_mtime_ns) for one in status])).encode()
    key = hashlib.blake2b(source, digest_size=16).hexdigest()
    folder = cache_folder()
    if folder is None:
        return _build(root, shards, splits, sizes, key)
    file = folder / f"shards-{key}.npz"
    with _lock(folder):
        with suppress(OSError, DataError):  # not there yet, or damaged
            return ShardIndex.unpack(file.read_bytes(), file)
        index = _build(root, shards, splits, sizes, key)
        write_cached(file, index.pack())
    return index


def write_index(folder: Path) -> ShardIndex:
    """ROOT/index.npz for the shards that others wrote, with a checksum of each image and shard, which takes reading them once."""
    index = webdataset_index(str(folder))
    for number, shard in enumerate(index.shards):
        try:
            with open_shard(folder / shard) as file:
                index.checksums[number] = _checksum(file, 0, int(index.sizes[number]))
                for split in index.splits.values():
                    for row in np.flatnonzero(split.places["shard"] == number):
                        _, offset, length, _ = split.places[row].item()
                        split.places["checksum"][row] = _checksum(file, offset, length)
        except OSError as error:
            raise DataError(f"{folder / shard} cannot be read: {error.strerror}. Copy it again.") from error
    index.write(folder)
    return index


def _checksum(file: BinaryIO, offset: int, length: int) -> int:
    checksum = part_checksum(file, offset, length)
    if checksum is None:
        raise DataError(f"{file.name} has become shorter. Start the same command again when nobody writes it.")
    return checksum


def _status(path: str) -> os.stat_result:
    """DataError for what is no file: a named pipe, which would be waited for, or a link that leads nowhere."""
    if not os.path.isfile(path):
        raise DataError(f"{path} is not a file. Remove it from the shards, or copy the shard there.")
    return os.stat(path)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One of the ranks of a machine builds the index, the others wait for it; without a lock where nothing can be written."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "shards.lock").open("w"))
            lock_file(lock, fcntl.LOCK_EX)
        yield


def _splits(root: str, shards: list[str]) -> list[Split]:
    """The split of each shard by a word in its path, as in train/0000.tar or imagenet-val-00.tar; all train where none has one."""
    found: list[Split | None] = [next(filter(None, map(split_meant, re.findall(r"[^\W\d_]+", shard))), None) for shard in shards]
    if not any(found):
        return ["train"] * len(shards)
    if lacking := [shard for shard, split in zip(shards, found, strict=True) if split is None]:
        raise DataError(
            f"data.root={root}: {first_names(lacking, 3)} have no train, val or test in their names, and others have. "
            "Rename them, or move them away."
        )
    return [split for split in found if split is not None]


class _Scanner:
    """What a shard holds, by its headers and labels: the source of a Loader."""

    def __init__(self, root: str, shards: list[str]) -> None:
        self.root, self.shards = root, shards

    def __getitem__(self, number: int) -> ScannedShard:
        shard = self.shards[number]
        path = os.path.join(self.root, shard)
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for key, extension, member in _sample_files(tar):
                    if extension != "cls":
                        if key in images:
                            raise DataError(f"{shorten(key)} has two images. Remove one of them.")
                        images[key] = (member.offset_data, member.size)
                        continue
                    content = tar.extractfile(member)
                    assert content is not None
                    label = composed(content.read().decode(errors="surrogateescape").strip())
                    if label and labels.setdefault(key, label) != label:
                        raise DataError(f"{shorten(key)} has two classes. Remove one of them.")
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # tarfile raises any: also RecursionError, or MemoryError for a header that claims to be large
            raise DataError(
                f"{path} cannot be read as a tar file without compression: {first_line(error)}. Copy it again, or decompress it."
            ) from error
        if lacking := sorted(images.keys() - labels.keys()):
            key = shorten(lacking[0])
            raise DataError(f"{path}: {key} has no {key}.cls with its class. Add it to the shard.")
        places = np.array([(number, offset, size, -1) for offset, size in images.values()], dtype=PLACE)
        return ScannedShard([f"{shard}/{key}" for key in images], [labels[key] for key in images], places)


def _sample_files(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The images and labels of a shard: key, extension, member. DataError for one whose bytes do not stand there as they are."""
    for member in _members(tar):
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        is_label = extension == "cls" and member.size <= MOST_LABEL
        if not stem or member.isdir() or not (is_label or file_extension(name) in IMAGE_EXTENSIONS):
            continue
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{shorten(member.name)} is a link, a device or a sparse file. "
                "Write the shard with tar --dereference --hard-dereference, and without --sparse."
            )
        if len(member.name) > MOST_NAME or "\0" in member.name:
            raise DataError(
                f"{shorten(member.name)}: expected a name of at most {MOST_NAME:,} letters, none of them zero. Rename it."
            )
        yield f"{folder}{slash}{stem}", extension, member


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members of an archive that is whole. ReadError for another, of which tarfile would give those before the damage, or give them for ever."""
    file, end = cast(BinaryIO, tar.fileobj), 0
    size = os.fstat(file.fileno()).st_size
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # which would be kept
        if not end < tar.offset <= size:
            raise tarfile.ReadError("it is cut short" if tar.offset > size else "the size of a file in it is negative")
        end = tar.offset
        yield member
    file.seek(end)
    if len(rest := file.read(ARCHIVE_END)) < ARCHIVE_END:
        raise tarfile.ReadError("it is cut short")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.ReadError("it goes on behind the end of its files, or a header in it is damaged")
        rest = file.read(2**20)


def _build(root: str, shards: list[str], splits: list[Split], sizes: Indices, source: str) -> ShardIndex:
    workers = worker_count("auto", in_memory=len(shards) <= FEW, processes_here=1)
    with closing(Loader(_Scanner(root, shards), range(len(shards)), num_workers=workers)) as scan:
        scanned = list(scan)
    of_split: dict[Split, list[ScannedShard]] = {}
    for split, shard in zip(splits, scanned, strict=True):
        of_split.setdefault(split, []).append(shard)
    if "train" not in of_split:
        raise DataError(f"data.root={root} has shards of {' and '.join(of_split)}, but none of train. Add them.")
    texts = {label for shard in of_split["train"] for label in shard.labels}
    by_number = all(map(str.isdecimal, texts))
    classes = tuple(sorted(texts, key=lambda text: (int(text) if by_number else 0, text)))  # 1 and 01 are two
    packed: dict[Split, PackedSplit] = {}
    for split, parts in of_split.items():
        names = [name for part in parts for name in part.names]
        if not names:
            raise DataError(f"data.root={root} has no images in the shards of {split}. Remove them, or add images.")
        labels = label_indices([label for part in parts for label in part.labels], classes, names.__getitem__)
        packed[split] = PackedSplit(labels, pack_names(names), np.concatenate([part.places for part in parts]))
    return ShardIndex(classes, tuple(shards), sizes, np.full(len(shards), -1, dtype=np.int64), packed, source)
