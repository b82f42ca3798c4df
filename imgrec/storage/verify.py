"""Which images of a folder of shards are damaged, by the checksums of its index."""

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imgrec.storage.index import ShardIndex
from imgrec.storage.shards import ShardFiles, is_intact


def find_damage(folder: Path, *, advance: Callable[[int], None]) -> list[str]:
    """A sentence for each damaged image, and for each shard with damage elsewhere; every byte is read.

    advance: called with 1 after each shard. DataError for a damaged index.
    """
    index = ShardIndex.read(folder)
    files = ShardFiles(str(folder), index.shards, index.sizes)
    names = np.concatenate([split.names for split in index.splits.values()])
    places = np.concatenate([split.places for split in index.splits.values()])
    order = np.argsort(places["shard"], kind="stable")
    bounds = np.searchsorted(places["shard"][order], np.arange(len(index.shards) + 1))

    def look(shard: int) -> list[str]:
        rows = order[bounds[shard] : bounds[shard + 1]]
        found = _shard_damage(files, shard, int(index.checksums[shard]), names[rows].tolist(), places[rows].tolist())
        advance(1)
        return found

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-verify") as pool:
        return [line for lines in pool.map(look, range(len(index.shards))) for line in lines]


def _shard_damage(
    files: ShardFiles, shard: int, checksum: int, names: list[bytes], places: list[tuple[int, int, int, int]]
) -> list[str]:
    path = files.path(shard)
    try:
        # Read, not mapped: a shard that is too short ends a process that reads it by a map.
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    damaged = [
        os.fsdecode(name)
        for name, (_, offset, length, stored) in zip(names, places, strict=True)
        if offset + length > len(content) or not is_intact(content[offset : offset + length], stored)
    ]
    if damaged:
        return [f"{path}: {name}" for name in damaged]
    if len(content) != files.sizes[shard] or (checksum >= 0 and zlib.crc32(content.data) != checksum):
        return [f"{path}: damaged between the images, in a header or a label"]
    return []
