"""What is kept between runs as it takes long to find out, in a folder of its own. All of it can be lost at any time."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "IMGREC_CACHE"
OURS = (
    "listing-",
    "shards-",
    "readable-",
    "facts-",
    "checked-",
    "findings-",
    "unfinished-",
)  # how the names of the files begin that are written here
CHECKSUM_BYTES = 16
MOST_CACHED = 2**30  # which the names of 25 million images of 40 characters fill


def cache_folder() -> Path | None:
    """In IMGREC_CACHE, else in XDG_CACHE_HOME or ~/.cache; None where IMGREC_CACHE is empty, or there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")  # relative ones are ignored, by XDG's rules
    base = os.environ.get(CACHE_VARIABLE, base)
    return Path(base) / "imgrec" / "listings" if os.path.isabs(base) else None


def write_cached(file: Path, *parts: bytes) -> None:
    """A file of the cache, whole or not at all, also where several processes write it; not at all where that is not possible.

    The files used longest ago are removed, until the others take MOST_CACHED at most.
    """
    with suppress(OSError):  # the next run finds it out again
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, unfinished = tempfile.mkstemp(dir=file.parent, prefix="unfinished-")
        try:
            with os.fdopen(number, "wb") as output:
                output.writelines(parts)
            os.replace(unfinished, file)
        except BaseException:
            os.unlink(unfinished)
            raise
        _drop_oldest(file.parent)


def write_summed(file: Path, content: bytes) -> None:
    """`write_cached` with a checksum, for `read_summed`."""
    write_cached(file, _checksum(content), content)


def read_summed(file: Path) -> bytes:
    """What `write_summed` wrote; OSError where there is no such file, ValueError where it is damaged."""
    stored = file.read_bytes()
    checksum, content = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise ValueError(f"{file} is damaged")
    return content


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def _drop_oldest(folder: Path) -> None:
    with os.scandir(folder) as entries:
        ours = [(entry.stat(), entry.path) for entry in entries if entry.name.startswith(OURS)]
    files = sorted(((status.st_mtime_ns, status.st_size, path) for status, path in ours), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MOST_CACHED:
            os.unlink(path)
