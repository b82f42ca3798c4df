"""What remote shards are read from: a server or a bucket by obstore, or what fsspec reads. Imports no torch."""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from imgrec.errors import SourceError, first_line, shorten

if TYPE_CHECKING:
    from obstore import GetResult

SCHEMES = {"http", "https", "s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"}  # what obstore reads
CONNECT_S = 10
STALLED_S = 20  # after which a request ends that brings nothing; a server that is silent is named after ten of them
REQUEST_S = 60  # of a request: of half a megabyte, or of a piece of an index
PIECE_BYTES = 2**22  # of a file that is read whole, so that a slow line has REQUEST_S for each
COPIES = 8  # of an index that are in memory at a time, at most
REFUSED = ("PermissionDeniedError", "UnauthenticatedError")  # obstore's
BUSY = ("408", "425", "429")
NO_SUCH_RANGE = "416"
SYSTEM_CAUSE = re.compile(r'(?:message|error): "([^"\n]+)"|InvalidCertificate\b')  # in the debug text of obstore's errors
CLOUD_ROLE = "169.254.169.254"  # where a machine of a cloud has keys, asked when no others are set


class Store(Protocol):
    """What shards are read from."""

    def read(self, path: str, span: tuple[int, int] | None) -> memoryview:
        """A file, or the bytes of it in [start, stop)."""


class ReadError(SourceError):
    """'cannot be read: ...': what it is, the one who asked says."""


class ObjectStore:
    """Of obstore: http, https, s3, gs, az, and what else it knows."""

    def __init__(self, root: str) -> None:
        from obstore.store import from_url

        options = {
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=STALLED_S),
            "timeout": timedelta(seconds=REQUEST_S),
            "allow_http": True,
        }
        # Attempts are counted here, as they are also made after a body that is cut short or damaged.
        self._store = from_url(root, client_options=options, retry_config={"max_retries": 0})  # type: ignore[call-overload]

    def read(self, path: str, span: tuple[int, int] | None) -> memoryview:
        import obstore

        if span is not None:
            return _body(obstore.get(self._store, path, options={"range": span}), span[1] - span[0])
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // COPIES
        try:
            first = obstore.get(self._store, path, options={"range": (0, PIECE_BYTES)})
        except obstore.exceptions.NotSupportedError:  # Tornado, for one, answers a range that is a whole small file with 200
            return _body(obstore.get(self._store, path), most)
        if (size := first.meta["size"]) > most:
            raise ValueError(f"it has {size:,} bytes, which the memory of this machine does not hold")
        content = bytearray(_body(first, PIECE_BYTES))
        for start in range(PIECE_BYTES, size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, size)
            content += _body(obstore.get(self._store, path, options={"range": (start, stop)}), stop - start)
        return memoryview(content)


def _body(answer: "GetResult", most: int) -> memoryview:
    """The bytes of an answer; ValueError where it has more, which may have no end."""
    piece = next(iter(answer.stream(min_chunk_size=most + 1)), b"")  # it is shorter than that only where it is all
    if len(piece) > most:
        raise ValueError(f"more than the {most:,} bytes came that were asked for")
    return memoryview(piece)


class FileSystem:
    """Of fsspec: what obstore does not know."""

    def __init__(self, root: str) -> None:
        from fsspec.core import url_to_fs

        self._system, self._root = url_to_fs(root)

    def read(self, path: str, span: tuple[int, int] | None) -> memoryview:
        start, stop = span or (None, None)
        return memoryview(self._system.cat_file(f"{self._root.rstrip('/')}/{path}", start=start, end=stop))


def open_store(root: str) -> Store:
    """SourceError for an address that nothing reads."""
    try:
        return ObjectStore(root) if root.partition("://")[0] in SCHEMES else FileSystem(root)
    except Exception as error:  # obstore's, fsspec's and those of the packages behind it
        raise SourceError(
            f"data.root={root} cannot be opened: {first_line(error)}. Set data.root=https://..., s3://BUCKET/... or another "
            "address that obstore or fsspec reads."
        ) from error


def read_failure(error: Exception) -> str:
    """The first line of an error, shortened, as a server may answer with a whole page; and what the system said, which obstore has below it."""
    line, cause = shorten(first_line(error), 300), SYSTEM_CAUSE.search(str(error))
    return line if cause is None else f"{line} ({cause[1] or 'its certificate is not valid here'})"


def find_fix(error: Exception) -> str:
    """What to type where another attempt cannot help; nothing where it may."""
    text = str(error)
    if isinstance(error, PermissionError) or type(error).__name__ in REFUSED or CLOUD_ROLE in text:
        return "Set the store's keys, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public one."
    status = re.search(r"status code: (4\d\d)", text)
    if status and status[1] == NO_SUCH_RANGE:
        return "It is shorter there than it was. Copy it there again."
    return "Correct data.root." if status and status[1] not in BUSY else ""
