"""Which images of a folder of shards are damaged, by the checksums of its index."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imgrec.storage.checksums import open_shard, part_checksum
from imgrec.storage.index import ShardIndex
from imgrec.storage.shards import ShardFiles


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
        with open_shard(path) as file:
            damaged = [
                os.fsdecode(name)
                for name, (_, offset, length, stored) in zip(names, places, strict=True)
                if (found := part_checksum(file, offset, length)) is None or stored not in (-1, found)
            ]
            size = os.fstat(file.fileno()).st_size
            whole = part_checksum(file, 0, size) if size == files.sizes[shard] and not damaged else None
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    if damaged:
        return [f"{path}: {name}" for name in damaged]
    if whole is None or checksum not in (-1, whole):
        return [f"{path}: damaged between the images, in a header or a label"]
    return []
