"""Images into tar shards that tar, webdataset and timm read, with the index by which imgrec reads them in its own order."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import warnings
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import simplejpeg

from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.data.decode import FORMATS, ScaleError, resize_shorter_side
from imgrec.data.folder import FileData, ImageFiles
from imgrec.data.loader import Loader
from imgrec.data.pieces import open_image
from imgrec.errors import DataError, SourceError, unreadable
from imgrec.files import IMAGE_EXTENSIONS, IMAGE_FORMATS, atomic_output, atomic_write, file_extension
from imgrec.storage.index import PLACE, PackedSplit, Places, ShardIndex
from imgrec.storage.pack_folder import UNFINISHED, make_folder, own_folder

JPEG_SIDE = 65_500  # pixels, of libjpeg
Format = Literal["jpeg", "raw", "keep"]


@dataclass(frozen=True)
class Packing:
    """How images are packed, by the keys of conf/pack.yaml."""

    format: Format
    size: int
    quality: int
    shard_images: int


class ShardTask(NamedTuple):
    """A shard to write."""

    split: Split
    number: int

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number:05d}.tar"


class WrittenShard(NamedTuple):
    """A shard that is done: the rows of its split that are in it, and their places in the shard."""

    rows: Indices
    places: Places
    bad: tuple[str, ...]  # paths of unreadable images, which were left out
    size: int
    checksum: int


class ShardWriter:
    """Writes shards, each whole or not at all, and what is known of them: the source of a Loader."""

    def __init__(self, splits: dict[Split, ImageFiles], out: Path, packing: Packing) -> None:
        self.splits, self.out, self.packing = splits, out, packing
        self._rows = {
            ShardTask(split, number): rows
            for split, images in splits.items()
            for number, rows in enumerate(_cut(len(images), packing.shard_images))
        }

    @property
    def tasks(self) -> list[ShardTask]:
        return list(self._rows)

    def count(self, task: ShardTask) -> int:
        return len(self._rows[task])

    def __getitem__(self, task: ShardTask) -> WrittenShard:
        images, path = self.splits[task.split], self.out / task.name
        rows: list[int] = []
        places: list[tuple[int, int, int, int]] = []
        bad: list[str] = []
        with atomic_output(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in self._rows[task].tolist():
                try:
                    extension, content = encode_image(images, row, self.packing)
                except (ScaleError, SourceError):  # of a setting that is missing, or a server
                    raise
                except DataError as error:
                    if images.skips:
                        bad.append(images.path(row))
                        continue
                    raise DataError(
                        f"{error} Remove or replace it, or leave unreadable images out with data.{images.bad_image_key}=skip."
                    ) from error
                rows.append(row)
                places.append((0, _add(tar, f"{row:08d}{extension}", content), len(content), zlib.crc32(content)))
                _add(tar, f"{row:08d}.cls", str(images.labels[row]).encode())
        content = path.read_bytes()  # of the disk, or of the page cache
        shard = WrittenShard(
            np.array(rows, dtype=np.int64), np.array(places, dtype=PLACE), tuple(bad), len(content), zlib.crc32(content)
        )
        self._write_part(task, shard)
        return shard

    def _part(self, task: ShardTask) -> Path:
        return self.out / UNFINISHED / f"{task.split}-{task.number:05d}.npz"

    def _write_part(self, task: ShardTask, shard: WrittenShard) -> None:
        buffer = io.BytesIO()
        numbers, bad = np.array([shard.size, shard.checksum]), np.frombuffer(json.dumps(shard.bad).encode(), dtype=np.uint8)
        np.savez(buffer, rows=shard.rows, places=shard.places, numbers=numbers, bad=bad)
        atomic_write(self._part(task), buffer.getvalue())

    def written(self, task: ShardTask) -> WrittenShard | None:
        """A shard that an earlier start has done."""
        path = self.out / task.name
        if not self._part(task).is_file() or not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(self._part(task).read_bytes()), allow_pickle=False) as part:
                bad, (size, checksum) = json.loads(part["bad"].tobytes()), part["numbers"].tolist()
                shard = WrittenShard(part["rows"], part["places"], tuple(bad), size, checksum)
        except Exception:  # damaged: the parsers of zipfile, numpy and json raise any
            return None
        return shard if path.stat().st_size == size else None


def _cut(count: int, most: int) -> list[Indices]:
    """The rows of each shard, in an order of chance: who reads a shard from its start to its end sees all classes.

    A small split has up to 16 shards, so that as many processes write it.
    """
    shards = max(-(-count // most), min(16, count // 100), 1)
    return np.array_split(np.random.default_rng(0).permutation(count).astype(np.int64), shards)


def encode_image(images: ImageFiles, row: int, packing: Packing) -> tuple[str, bytes]:
    """The extension and the bytes with which an image is packed; DataError for one that cannot be read."""
    if packing.format == "keep":
        try:
            with images.open(row) as file:
                content = file.read()
        except OSError as error:
            raise unreadable(images.path(row), error) from error
        return _extension(os.path.basename(images.path(row)), content), content
    pixels = images.decode(row)
    if min(pixels.shape[-2:]) > packing.size:
        pixels = resize_shorter_side(pixels, packing.size, images.preprocessing["interpolation"])
    channels, height, width = pixels.shape
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    if packing.format == "raw":
        kind, extension = (5, ".pgm") if channels == 1 else (6, ".ppm")
        return extension, f"P{kind}\n{width} {height}\n255\n".encode() + array.tobytes()
    if max(height, width) > JPEG_SIDE:
        raise DataError(
            f"{images.path(row)} has {width:,}x{height:,} pixels, and a JPEG at most {JPEG_SIDE:,} a side. Set format=raw or keep."
        )
    colours = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
    return ".jpg", simplejpeg.encode_jpeg(array, packing.quality, *colours)


def _extension(name: str, content: bytes) -> str:
    """Of the name of an image file, or by its content where that has none, as in a table or in shards that others wrote."""
    if (extension := file_extension(name)) in IMAGE_EXTENSIONS:
        return extension
    try:
        with warnings.catch_warnings(action="ignore"), open_image(io.BytesIO(content), FORMATS) as image:
            return IMAGE_FORMATS[str(image.format)].split()[0]
    except Exception:  # PIL's parsers raise any; a training says what is wrong
        return ".bin"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # the only header of a short name
    tar.addfile(member, io.BytesIO(content))
    return offset


def images_to_pack(data: FileData) -> dict[Split, ImageFiles]:
    """The splits of a data set, also those that were cut from train. An unreadable image is an error by the keys of its split."""
    found: dict[Split, ImageFiles] = {}
    for split in get_args(Split):
        images = getattr(data.splits, split)
        if images is not None:
            assert isinstance(images, ImageFiles)
            found[split] = images.for_training(None, 0) if split == "train" else images
    return found


def pack_images(
    data: FileData, out: Path, packing: Packing, *, num_workers: int, advance: Callable[[int], None]
) -> tuple[ShardIndex, list[str]]:
    """Write the shards that `out` does not have yet, then the index; returns that, and the paths of images that were left out.

    advance: called with the number of images of each shard that is done. ConfigError for a folder with something else.
    """
    writer = ShardWriter(images_to_pack(data), out, packing)
    source = _source(data, packing)
    with own_folder(out, source):
        done: dict[ShardTask, WrittenShard] = {}
        for task in writer.tasks:
            if (shard := writer.written(task)) is not None:
                done[task] = shard
                advance(writer.count(task))
        missing = [task for task in writer.tasks if task not in done]
        for task in missing:
            make_folder(out, (out / task.name).parent)
        with closing(Loader(writer, missing, num_workers=min(num_workers, len(missing)))) as shards:
            for task, shard in zip(missing, shards, strict=True):
                done[task] = shard
                advance(writer.count(task))
        index = _join(writer, done, data.classes, source)
        atomic_write(out / "_info.json", json.dumps(_webdataset_info(index), indent=1))
        index.write(out)
        shutil.rmtree(out / UNFINISHED)
    return index, [path for task in writer.tasks for path in done[task].bad]


def _join(writer: ShardWriter, done: dict[ShardTask, WrittenShard], classes: tuple[str, ...], source: str) -> ShardIndex:
    splits: dict[Split, PackedSplit] = {}
    for split, images in writer.splits.items():
        parts = [(number, done[task]) for number, task in enumerate(writer.tasks) if task.split == split]
        for number, shard in parts:
            shard.places["shard"] = number
        rows = np.concatenate([shard.rows for _, shard in parts])
        if not len(rows):
            raise DataError(f"no image of the {split} split can be read, and unreadable images are skipped. Replace them.")
        order = np.argsort(rows)
        places = np.concatenate([shard.places for _, shard in parts])[order]
        splits[split] = PackedSplit(images.labels[rows[order]], images.names[rows[order]], places)
    shards = [done[task] for task in writer.tasks]
    return ShardIndex(
        classes,
        tuple(task.name for task in writer.tasks),
        np.array([shard.size for shard in shards], dtype=np.int64),
        np.array([shard.checksum for shard in shards], dtype=np.int64),
        splits,
        source,
    )


def _source(data: FileData, packing: Packing) -> str:
    """A hash of what is packed and how: names, labels, and as many sizes and checksums of files as a run compares."""
    record = data.record()
    digest = hashlib.blake2b(f"{record.digest()} {asdict(packing)} {data.preprocessing()}".encode(), digest_size=16)
    for split in record.splits.values():
        digest.update(split.content.tobytes())
    return digest.hexdigest()


def _webdataset_info(index: ShardIndex) -> dict[str, object]:
    """The splits as timm and Hugging Face's hub list them."""
    splits = {}
    for split, packed in index.splits.items():
        numbers, counts = np.unique(packed.places["shard"], return_counts=True)
        splits[split] = {
            "name": split,
            "filenames": [index.shards[number] for number in numbers],
            "shard_lengths": counts.tolist(),
            "num_samples": len(packed.labels),
        }
    return {"splits": splits}
