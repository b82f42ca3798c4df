"""The folder in which blocks of remote shards are kept: written whole by one process, the oldest removed above a bound."""

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from imgrec.errors import MORE_FILES, NO_ROOM, TOO_MANY_OPEN, SourceError
from imgrec.locks import lock_file

PART = ".part"
BLOCK_NAME = re.compile(r"[0-9a-f]{32}-\d+((\.[0-9a-f]{16})?\.part)?")
STALE_S = 3600.0  # age of an unfinished block that nobody is writing any more
# A process looks how large the cache is whenever it has written 1/128 of the bound, and removes blocks down to 7/8 of it from 15/16 on,
# so that up to 8 processes that write at the same time stay below it.
LOOK = 1 / 128
FULL = 15 / 16
LEFT = 7 / 8


def block_path(folder: str, key: str, block: int) -> str:
    return os.path.join(folder, f"{key}-{block}")


class BlockCache:
    """A folder of blocks that stays below `most_bytes`, for several threads and processes at once."""

    def __init__(self, folder: str, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._written = most_bytes  # so that the first block looks

    def write(self, key: str, number: int, size: int, read: Callable[[], memoryview]) -> None:
        """Write what `read` gives as a block, unless it is there already; SourceError where the folder cannot be written."""
        path = block_path(self.folder, key, number)
        with self._writable():
            while True:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                with suppress(FileNotFoundError):  # the cache was removed meanwhile
                    _write(path, size, read)
                    self._bound(size)
                    return

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "Make it a folder that you can write to"
            if error.errno in NO_ROOM:
                fix = f"Free disk space, set a data.cache_gb below {self.most_bytes / 1e9:.3g}"
            elif error.errno in TOO_MANY_OPEN:
                fix = MORE_FILES
            raise SourceError(
                f"{self.folder}, where remote shards are cached, cannot be written: {error.strerror}. {fix}, or set IMGREC_CACHE=FOLDER."
            ) from error

    def _bound(self, written: int) -> None:
        """Remove the blocks used longest ago where the cache has become too large. Who has one open can read on."""
        with self._lock:
            self._written += written
            if self._written < LOOK * self.most_bytes:
                return
            self._written = 0
        if not self._looking.acquire(blocking=False):
            return
        try:
            _remove_oldest(self.folder, self.most_bytes)
        finally:
            self._looking.release()


def _write(path: str, size: int, read: Callable[[], memoryview]) -> None:
    with _claimed(path, size) as claimed:
        if claimed is None:
            return
        file, part = claimed
        content = read()
        os.ftruncate(file, 0)
        while len(content):
            content = content[os.write(file, content) :]
        os.rename(part, path)


@contextmanager
def _claimed(path: str, size: int) -> Iterator[tuple[int, str] | None]:
    """The open file to write a block into, and its name, which no other process writes; None where the block is there already.

    The lock is the system's: a process that is killed has it no longer. Where the file system has no locks each process has
    a file of its own, and the last to finish replaces the same block.
    """
    while not _is_whole(path, size):
        file, part = os.open(path + PART, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), path + PART
        try:
            if not lock_file(file, fcntl.LOCK_EX):
                part = f"{path}.{os.urandom(8).hex()}{PART}"
                os.rename(path + PART, part)  # of one process: others find no such file, and begin again
            if _is_file(file, part):  # else another process has finished it, and this is the block
                if _is_whole(path, size):  # finished between the look at it and the lock
                    os.unlink(part)
                    break
                yield file, part
                return
        finally:
            os.close(file)
    yield None


def _is_file(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _is_whole(path: str, size: int) -> bool:
    """Also not after a power failure, which may leave a shorter file."""
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _remove_oldest(folder: str, most_bytes: int) -> None:
    now, total = time.time(), 0
    found: list[tuple[int, int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not BLOCK_NAME.fullmatch(entry.name):
                continue  # not ours to remove
            with suppress(FileNotFoundError):  # another process removes too
                status = entry.stat()
                total += status.st_size
                if not entry.name.endswith(PART) or now - status.st_mtime > STALE_S:
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
    if total <= FULL * most_bytes:
        return
    for _, size, path in sorted(found):
        if total <= LEFT * most_bytes:
            break
        with suppress(FileNotFoundError):
            os.unlink(path)
        total -= size
