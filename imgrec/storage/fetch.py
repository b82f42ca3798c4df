"""A process that downloads blocks of remote shards into a folder, which remote.py starts. Imports no torch.

It is a process of its own because obstore's threads do not survive the forks by which loader workers start, and so that no
download waits for Python's lock while a network is trained. It ends when its parent does, whose end closes its input.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from multiprocessing.connection import Connection, Listener
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.errors import SourceError
from imgrec.storage.block_cache import BlockCache, block_path
from imgrec.storage.store import ReadError, Store, find_fix, open_store, read_failure

# Requests at once. The first batches of an epoch need most blocks of its window, which is what an empty cache costs: 64 requests
# of half a megabyte at 50 ms each are 640 MB/s.
REQUESTS_AHEAD = 64
REQUESTS_NEEDED = 16  # of what is waited for, beside those
MOST_ATTEMPTS = 10
MOST_WHOLE = 3  # first answers with the whole file, after which a server knows no ranges; a faulty one may send some
FIRST_WAIT_S = 0.1  # between attempts; twice as long after each, 25 s in all
MOST_WAIT_S = 5.0
# Loader workers take a core before it does; where they wait for a block, their cores are free (see benchmarks/NOTES.md).
LOWER_PRIORITY = 10
NO_SUCH_FILE = "there is no such file"
WITHOUT_RANGES = "Use a server that answers requests for a range of bytes, or copy the shards to a disk."


class FetchSettings(NamedTuple):
    """What the parent says on standard input, as JSON. address, key: of the socket."""

    root: str
    folder: str
    most_bytes: int
    address: str
    key: str


class Blocks(NamedTuple):
    """What is downloaded as one: consecutive images of a shard. images: [offset in the block, length, CRC-32 or -1] of each, block by block."""

    key: str  # of the index that they are cut by
    shards: tuple[str, ...]
    shard: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    first: NDArray[np.int64]  # row in `images` of the first image of each block, and the number of all
    images: NDArray[np.int64]

    def size(self, block: int) -> int:
        return int(self.stop[block] - self.start[block])


class Fetcher:
    """Downloads what it is asked for, several blocks at once, into a folder that stays below `most_bytes`."""

    def __init__(self, root: str, folder: str, most_bytes: int, store: Store | None = None) -> None:
        self.cache = BlockCache(folder, most_bytes)
        self.store = open_store(root) if store is None else store
        self._blocks: Blocks | None = None
        self._needed = ThreadPoolExecutor(REQUESTS_NEEDED, "imgrec-needed")
        self._ahead = ThreadPoolExecutor(REQUESTS_AHEAD, "imgrec-ahead")
        self._pending: dict[int, tuple[Future[None], ThreadPoolExecutor]] = {}
        self._lock = threading.RLock()  # a future that is done calls back where it is submitted, too

    def get(self, path: str) -> bytes:
        """A whole file."""
        return bytes(self._read(path, None, None))

    def open(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def ahead(self, numbers: Sequence[int]) -> None:
        """These blocks will be read soon."""
        assert self._blocks is not None
        for number in numbers:
            with suppress(OSError):  # who needs it is told what is wrong with the folder
                os.utime(block_path(self.cache.folder, self._blocks.key, number))  # it is not the oldest
                continue
            with self._lock:
                if number not in self._pending:
                    self._submit(self._ahead, number)

    def need(self, numbers: Sequence[int]) -> None:
        """Returns when these blocks are there; SourceError for one that cannot be read."""
        futures = []
        with self._lock:
            for number in numbers:
                waiting, pool = self._pending.get(number, (None, None))
                if waiting is None or (pool is self._ahead and waiting.cancel()):  # not begun, and nobody waits for it
                    waiting = self._submit(self._needed, number)
                futures.append(waiting)
        for future in futures:
            future.result()

    def _submit(self, pool: ThreadPoolExecutor, number: int) -> "Future[None]":
        future = pool.submit(self._fetch, number)
        self._pending[number] = future, pool
        future.add_done_callback(lambda done: self._forget(number, done))
        return future

    def _forget(self, number: int, done: "Future[None]") -> None:
        with self._lock:
            if self._pending.get(number, (None, None))[0] is done:
                del self._pending[number]

    def _fetch(self, number: int) -> None:
        assert self._blocks is not None
        blocks = self._blocks
        shard, span = blocks.shards[blocks.shard[number]], (int(blocks.start[number]), int(blocks.stop[number]))
        images = blocks.images[blocks.first[number] : blocks.first[number + 1]].tolist()
        self.cache.write(blocks.key, number, span[1] - span[0], lambda: self._read(shard, span, images))

    def _read(self, path: str, span: tuple[int, int] | None, images: list[list[int]] | None) -> memoryview:
        """The bytes of a file, all of them and undamaged, in up to MOST_ATTEMPTS; an image that is damaged in the store becomes zeros.

        So it is found where it is decoded, by its name, as in a shard on a disk.
        """
        if span is not None and span[0] == span[1]:  # of an empty image: a range has a byte at least
            return memoryview(b"")
        began, reason, damaged, whole_files = time.monotonic(), "", None, 0
        for attempt in range(MOST_ATTEMPTS):
            if attempt:
                time.sleep(min(MOST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
            try:
                content = self.store.read(path, span)
            except Exception as error:  # obstore's have no class for most of what can go wrong
                reason = read_failure(error)
                if isinstance(error, FileNotFoundError):
                    raise ReadError(f"cannot be read: {NO_SUCH_FILE}. Copy it there, or correct data.root.") from error
                whole_files += type(error).__name__ == "NotSupportedError"  # obstore's
                if fix := find_fix(error) or (WITHOUT_RANGES if whole_files == attempt + 1 == MOST_WHOLE else ""):
                    raise ReadError(f"cannot be read: {reason}. {fix}") from error
                continue
            if span is not None and len(content) != span[1] - span[0]:
                reason = f"{len(content):,} bytes came, not the {span[1] - span[0]:,} from {span[0]:,} on"
                continue
            wrong = {
                row: checksum
                for row, (offset, length, stored) in enumerate(images or [])
                if stored >= 0 and (checksum := zlib.crc32(content[offset : offset + length])) != stored
            }
            if not wrong:
                return content
            if wrong == damaged:  # the same wrong bytes twice
                whole = bytearray(content)
                for row in wrong:
                    offset, length, _ = (images or [])[row]
                    whole[offset : offset + length] = bytes(length)
                return memoryview(whole)
            reason, damaged = "other bytes came than were packed, by their checksum", wrong
        raise ReadError(
            f"cannot be read: {reason}; {MOST_ATTEMPTS} attempts in {time.monotonic() - began:.0f} s. "
            f"{WITHOUT_RANGES if 'ange request' in reason else 'Start the same command again when the server answers.'}"
        )


def serve(settings: FetchSettings) -> None:
    """Answer the processes of a run until standard input ends."""
    with closing(Listener(settings.address, "AF_UNIX", backlog=64, authkey=bytes.fromhex(settings.key))) as listener:
        fetcher: Fetcher | SourceError
        try:
            fetcher = Fetcher(settings.root, settings.folder, settings.most_bytes)
        except SourceError as error:
            fetcher = error
        threading.Thread(target=_accept, args=(listener, fetcher), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.buffer.read()
    shutil.rmtree(os.path.dirname(settings.address), ignore_errors=True)


def _accept(listener: Listener, fetcher: Fetcher | SourceError) -> None:
    while True:
        with suppress(OSError, EOFError):  # a process that was killed while it connected
            threading.Thread(target=_answer, args=(listener.accept(), fetcher), daemon=True).start()


def _answer(connection: "Connection[Any, Any]", fetcher: Fetcher | SourceError) -> None:
    """The calls of a process, one after another; of all but `ahead` it waits for the result."""
    with suppress(OSError, EOFError), connection:  # it has ended
        while True:
            name, argument = connection.recv()
            try:
                if isinstance(fetcher, SourceError):
                    raise fetcher
                result = getattr(fetcher, name)(argument)
            except SourceError as error:
                result = error.with_traceback(None)
            if name != "ahead":
                connection.send(result)


def main() -> None:
    # Who stops a run signals all its processes, and the run then wants its batches up to the next step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.nice(LOWER_PRIORITY)
    serve(FetchSettings(**json.loads(sys.stdin.buffer.readline())))
    os._exit(0)  # without waiting for downloads
