"""What a scan found, kept between checks: facts and fingerprints of files by name, size and times of change."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.image_faults import FACTS
from imgrec.data.batch import Indices
from imgrec.data.cache import cache_folder, write_cached
from imgrec.data.file_index import THREADS, ImageNames

if TYPE_CHECKING:
    from imgrec.data.decode import Preprocessing
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


def how_read(images: "ImageFiles") -> tuple[object, ...]:
    """All by which a file would be decoded to other pixels, or not at all, and judged otherwise."""
    reading: Preprocessing = images.preprocessing
    return (FACTS_VERSION, reading["channels"], reading["max_pixels"], reading["scale"], images.reading["decoder"])


def cache_file(root: str, images: "ImageFiles") -> Path | None:
    """Of a folder, and how its files are read."""
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)) + repr(how_read(images)).encode(), digest_size=16).hexdigest()
    folder = cache_folder()
    return None if folder is None else folder / f"facts-{name}"


def read_facts(
    cache: Path | None,
    names: ImageNames,
    stamps: NDArray[np.int64],
    facts: NDArray[np.void],
    fingerprints: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Fill in what was kept of files that have not changed; returns which these are. A file that is missing or damaged has none."""
    known = np.zeros(len(names), dtype=bool)
    order: Indices | None = None
    for file in [] if cache is None else [cache, *_portions(cache)]:
        kept = _read(file, fingerprints.shape[1])
        if kept is None:
            continue
        if np.array_equal(kept["names"], names):
            new = old = np.arange(len(names))
        else:
            order = np.argsort(names) if order is None else order
            places = np.searchsorted(names, kept["names"], sorter=order).clip(max=len(names) - 1)
            new = order[places]
            old = np.flatnonzero(names[new] == kept["names"])
            new = new[old]
        same = (kept["stamps"][old] == stamps[new]).all(axis=1)
        old, new = old[same], new[same]
        facts[new], fingerprints[new], known[new] = kept["facts"][old], kept["fingerprints"][old], True
    return known


def _read(file: Path, words: int) -> dict[str, NDArray[Any]] | None:
    if not file.is_file():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            kept = {key: content[key] for key in ("names", "stamps", "facts", "fingerprints")}
        os.utime(file)  # it is not the oldest
    except Exception:  # the parsers of zipfile and numpy raise any
        return None
    return kept if kept["facts"].dtype == FACTS and kept["fingerprints"].shape[1:] == (words,) else None


def _portions(cache: Path) -> list[Path]:
    """What checks wrote that did not end."""
    return list(cache.parent.glob(f"{cache.name}-portion-*"))


def write_facts(
    cache: Path | None,
    kept: NDArray[np.bool_],
    names: ImageNames,
    stamps: NDArray[np.int64],
    facts: NDArray[np.void],
    fingerprints: NDArray[np.uint64],
    *,
    portion: bool = False,
) -> None:
    """Of the files that are `kept`. portion: beside what is there already; else instead of it."""
    if cache is None or not kept.any():
        return
    buffer = io.BytesIO()
    np.savez(buffer, names=names[kept], stamps=stamps[kept], facts=facts[kept], fingerprints=fingerprints[kept])
    if portion:
        write_cached(cache.with_name(f"{cache.name}-portion-{os.urandom(4).hex()}"), buffer.getvalue())
        return
    portions = _portions(cache)
    write_cached(cache, buffer.getvalue())
    for file in portions:
        with suppress(OSError):
            file.unlink()
