"""What a scan found, kept between checks: facts and fingerprints of files by name, size and times of change."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.image_faults import FACTS
from imgrec.data.cache import cache_folder, write_cached
from imgrec.data.decode import Preprocessing
from imgrec.data.file_index import THREADS, ImageNames
from imgrec.data.folder import ImageFiles

STATED_AT_ONCE = 4096  # files that a thread looks at
FACTS_VERSION = 3  # of what is kept: one more when facts or fingerprints are computed in another way


def file_stamps(root: str, names: ImageNames) -> NDArray[np.int64]:
    """int64 [N, 3]: size, and times of change of content and of state; -1 for a file that is gone."""
    folder = os.path.join(os.fsencode(root), b"")

    def look(first: int) -> list[tuple[int, int, int]]:
        found = []
        for name in names[first : first + STATED_AT_ONCE].tolist():
            try:
                status = os.stat(os.path.join(folder, name))
                found.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            except OSError:  # `decode` says so
                found.append((-1, -1, -1))
        return found

    with ThreadPoolExecutor(THREADS, "imgrec-stat") as pool:
        parts = list(pool.map(look, range(0, len(names), STATED_AT_ONCE)))
    return np.array([stamp for part in parts for stamp in part], dtype=np.int64).reshape(-1, 3)


def cache_file(root: str, images: ImageFiles) -> Path | None:
    """Of a folder and all by which a file would be decoded to other pixels, or not at all."""
    reading: Preprocessing = images.preprocessing
    how = (
        FACTS_VERSION,
        reading["channels"],
        reading["max_pixels"],
        reading["scale"],
        images.reading["decoder"],
    )
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)) + repr(how).encode(), digest_size=16).hexdigest()
    folder = cache_folder()
    return None if folder is None else folder / f"facts-{name}"


def read_facts(
    cache: Path | None,
    names: ImageNames,
    stamps: NDArray[np.int64],
    facts: NDArray[np.void],
    fingerprints: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Fill in what was kept of files that have not changed; returns which these are: none where the file is missing or damaged."""
    known = np.zeros(len(names), dtype=bool)
    if cache is None or not cache.is_file():
        return known
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as kept:
            old_names, old_stamps, old_facts, old_prints = (kept[key] for key in ("names", "stamps", "facts", "fingerprints"))
        os.utime(cache)  # it is not the oldest
    except Exception:  # the parsers of zipfile and numpy raise any
        return known
    if old_facts.dtype != FACTS or old_prints.shape[1:] != fingerprints.shape[1:]:
        return known
    if np.array_equal(old_names, names):
        old = new = np.arange(len(names))
    else:
        _, old, new = np.intersect1d(old_names, names, assume_unique=True, return_indices=True)
    same = (old_stamps[old] == stamps[new]).all(axis=1)
    old, new = old[same], new[same]
    facts[new], fingerprints[new], known[new] = old_facts[old], old_prints[old], True
    return known


def write_facts(
    cache: Path | None,
    kept: NDArray[np.bool_],
    names: ImageNames,
    stamps: NDArray[np.int64],
    facts: NDArray[np.void],
    fingerprints: NDArray[np.uint64],
) -> None:
    if cache is None or not kept.any():
        return
    buffer = io.BytesIO()
    np.savez(buffer, names=names[kept], stamps=stamps[kept], facts=facts[kept], fingerprints=fingerprints[kept])
    write_cached(cache, buffer.getvalue())
