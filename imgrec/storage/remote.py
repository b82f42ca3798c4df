"""Shards on a server or in a bucket: read from a bounded cache on this machine, into which another process downloads them."""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgrec.config.instantiate import python_command
from imgrec.data.batch import Indices, Request, Requests
from imgrec.data.cache import CACHE_VARIABLE, cache_folder
from imgrec.errors import MORE_FILES, TOO_MANY_OPEN, ConfigError, DataError, SourceError
from imgrec.storage.block_cache import block_path
from imgrec.storage.fetch import MOST_ATTEMPTS, NO_SUCH_FILE, Blocks, FetchSettings
from imgrec.storage.index import INDEX, Places, ShardIndex
from imgrec.storage.store import ReadError

# Five photographs, or twenty at 256 pixels: few requests, and few bytes before the first batch (see benchmarks/NOTES.md).
BLOCK_BYTES = 2**19
MOST_AHEAD = 64  # requests that are announced before they are drawn
AHEAD_SHARE = 1 / 16  # of the cache that these may fill
WINDOW_SHARE = 0.8  # of the cache that the window may fill; the rest is for what is announced, and for blocks that are done
LONGEST_S = 1800.0  # in which the process has tried everything
END_S = 5.0  # in which it ends
MOST_ADDRESS = 107  # bytes of the path of a socket on Linux


def is_remote(root: str) -> bool:
    return "://" in root


class Downloads:
    """The process of fetch.py, and a connection to it for each process and thread that uses it."""

    def __init__(self, root: str, folder: str, most_bytes: int) -> None:
        place = tempfile.mkdtemp(prefix="imgrec-")
        self.root, self.folder, self.most_bytes = root, folder, most_bytes
        self._address, self._key = os.path.join(place, "socket"), secrets.token_bytes(16)
        if len(os.fsencode(self._address)) > MOST_ADDRESS:
            os.rmdir(place)
            raise ConfigError(
                f"TMPDIR={tempfile.gettempdir()}: too long for the socket of the process that downloads, whose path may have "
                f"{MOST_ADDRESS} bytes. Set TMPDIR=/tmp."
            )
        self._open = threading.local()
        # Not `-m`: its errors would be classes of `__main__`, which this process cannot unpickle.
        command = python_command("-c", "from imgrec.storage.fetch import main; main()")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, _end, process, place, os.getpid())
        self.pid = process.pid
        assert process.stdin is not None
        assert process.stdout is not None
        settings = FetchSettings(root, folder, most_bytes, self._address, self._key.hex())
        with suppress(BrokenPipeError):  # it has ended, and answers nothing
            process.stdin.write(json.dumps(settings._asdict()).encode() + b"\n")
            process.stdin.flush()
        if not process.stdout.readline():
            raise SourceError(
                f"data.root={root}: the process that downloads has ended at its start. See the lines above, if it has "
                "printed any, and start the same command again."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open = threading.local()

    def send(self, name: str, argument: Any) -> None:
        try:
            if getattr(self._open, "process", None) != os.getpid():  # a fork must not use the connection of its parent
                self._open.connection = Client(self._address, "AF_UNIX", authkey=self._key)
                self._open.process = os.getpid()
            self._open.connection.send((name, argument))
        except (OSError, EOFError) as error:
            raise self._lost() from error

    def call(self, name: str, argument: Any) -> Any:
        """What a method of `Fetcher` returns; SourceError where it raises that."""
        self.send(name, argument)
        try:
            if not self._open.connection.poll(LONGEST_S):
                raise SourceError(f"data.root={self.root}: no answer for {LONGEST_S:.0f} s. Start the same command again.")
            answer = self._open.connection.recv()
        except (OSError, EOFError) as error:
            raise self._lost() from error
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def _lost(self) -> SourceError:
        return SourceError(f"data.root={self.root}: the process that downloads was killed. Start the same command again.")


def _end(process: "subprocess.Popen[bytes]", place: str, owner: int) -> None:
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # it has ended before it read what it was sent
                pipe.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(place, ignore_errors=True)  # what the process has done, unless it was killed


class RemoteFiles:
    """The images of remote shards, by their place in them, as `ShardFiles`."""

    def __init__(self, index: ShardIndex, downloads: Downloads, key: str) -> None:
        self.folder, self.shards = downloads.root, index.shards
        self.downloads, self.key = downloads, key
        self._codes, self.blocks = cut_blocks(
            np.concatenate([split.places for split in index.splits.values()]), index.shards, key
        )
        downloads.call("open", self.blocks)

    def path(self, shard: int) -> str:
        return f"{self.folder}/{self.shards[shard]}"

    def numbers(self, places: Places) -> Indices:
        """The blocks of images."""
        found: Indices = np.searchsorted(self._codes, _codes(places))
        return found

    def read(self, place: np.void) -> NDArray[np.uint8]:
        """The bytes of an image. ReadError, whose text goes on from its name."""
        number = self._number(place)
        path = block_path(self.downloads.folder, self.key, number)
        for _ in range(3):  # it may be removed again before it is read, where much is read at once
            with suppress(FileNotFoundError), self._readable():
                file = os.open(path, os.O_RDONLY)  # half of the time of np.fromfile
                try:
                    content = bytearray(int(place["length"]))
                    if os.preadv(file, [content], int(place["offset"] - self.blocks.start[number])) == len(content):
                        return np.frombuffer(content, dtype=np.uint8)
                finally:
                    os.close(file)
            self.downloads.call("need", [number])
        raise SourceError(
            f"{self.downloads.folder} is too small: what was downloaded is removed before it is read. "
            "Set data.cache_gb to twice as much."
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            fix = MORE_FILES if error.errno in TOO_MANY_OPEN else "Make it a folder of yours"
            raise SourceError(
                f"{self.downloads.folder}, where remote shards are cached, cannot be read: {error.strerror}. {fix}, or set "
                f"{CACHE_VARIABLE}=FOLDER."
            ) from error

    def _number(self, place: np.void) -> int:
        shard, offset, _, _ = place.item()
        return int(np.searchsorted(self._codes, _code(shard, offset)))

    def fix(self, place: np.void) -> str:
        """What to do about an image that is damaged. Its block is removed from the cache, and so downloaded again."""
        Path(block_path(self.downloads.folder, self.key, self._number(place))).unlink(missing_ok=True)
        return "Copy the shard there again."


def _code(shard: Any, offset: Any) -> Any:
    """Of the block of an image, or int64 of the blocks of many, in the order of `Blocks`."""
    return shard << 32 | offset // BLOCK_BYTES


def _codes(places: Places) -> Indices:
    codes: Indices = _code(places["shard"].astype(np.int64), places["offset"])
    return codes


def cut_blocks(places: Places, shards: tuple[str, ...], key: str) -> tuple[Indices, Blocks]:
    """Images whose first byte is in the same BLOCK_BYTES of a shard are a block, from the first of them to the end of the last.

    Returns the code of each block, ascending, and the blocks.
    """
    places = places[np.lexsort((places["offset"], places["shard"]))]
    codes, first = np.unique(_codes(places), return_index=True)
    start = places["offset"][first]
    stop = np.maximum.reduceat(places["offset"] + places["length"], first)
    counts = np.diff(first, append=len(places))
    images = np.stack([places["offset"] - np.repeat(start, counts), places["length"], places["checksum"]], axis=1)
    return codes, Blocks(key, shards, places["shard"][first].astype(np.int64), start, stop, np.append(first, len(places)), images)


def open_remote(root: str, cache_bytes: int) -> tuple[ShardIndex, RemoteFiles]:
    """The index at `root`, and its images. DataError where there is none."""
    folder = cache_folder()
    if folder is None:
        raise ConfigError(
            f"{CACHE_VARIABLE}={os.environ.get(CACHE_VARIABLE, '')}: remote shards need a folder for their cache, by its absolute path. "
            f"Set {CACHE_VARIABLE}=FOLDER, such as {CACHE_VARIABLE}={shlex.quote(os.path.abspath('cache'))}."
        )
    cache = str(folder.parent / "shards")
    root = re.sub("(?<![:/])/+$", "", root)
    downloads = Downloads(root, cache, cache_bytes)
    try:
        content, index = _read_index(downloads, f"{root}/{INDEX}")
    except ReadError as error:
        written = "imgrec pack FOLDER out=DIR writes it beside the shards, imgrec pack index DIR beside those of webdataset."
        raise SourceError(f"{root}/{INDEX} {error}" + f" {written}" * (NO_SUCH_FILE in str(error))) from error
    key = hashlib.blake2b(f"{root} {BLOCK_BYTES} ".encode() + content, digest_size=16).hexdigest()
    return index, RemoteFiles(index, downloads, key)


def _read_index(downloads: Downloads, name: str) -> tuple[bytes, ShardIndex]:
    """Until it comes whole, or twice the same: it has checksums of its own."""
    content = b""
    for _ in range(MOST_ATTEMPTS):
        before, content = content, downloads.call("get", INDEX)
        with suppress(DataError):
            return content, ShardIndex.unpack(content, name)
        if content == before:
            break
    return content, ShardIndex.unpack(content, name)


class Announced:
    """Requests, each announced to the process that downloads some time before it is drawn, within a share of the cache."""

    def __init__(self, requests: Requests, files: RemoteFiles, places: Places) -> None:
        self.requests, self.files = requests, files
        self._numbers = files.numbers(places)

    def __iter__(self) -> Iterator[Request]:
        waiting: deque[tuple[Request, list[int]]] = deque()
        ahead: Counter[int] = Counter()  # requests that wait for a block
        total = 0
        for request in self.requests:
            numbers = np.unique(self._numbers[request.indices % len(self._numbers)]).tolist()
            self.files.downloads.send("ahead", numbers)
            total += sum(self.files.blocks.size(number) for number in numbers if not ahead[number])
            ahead.update(numbers)
            waiting.append((request, numbers))
            while len(waiting) > MOST_AHEAD or (total > AHEAD_SHARE * self.files.downloads.most_bytes and len(waiting) > 1):
                drawn, numbers = waiting.popleft()
                ahead.subtract(numbers)
                total -= sum(self.files.blocks.size(number) for number in numbers if not ahead[number])
                yield drawn
        for drawn, _ in waiting:
            yield drawn

    def __len__(self) -> int:
        return len(self.requests)
