"""A small HTTP/1.1 server with range requests over a folder, that can be slow and faulty in the ways that real ones are.

with served(folder, latency_s=0.05, faults=0.02) as (url, server): ...

python tests/range_server.py FOLDER [latency_s] [faults]  prints its address, and serves until its input ends.
"""

import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What goes wrong: an error, too many requests, a connection that breaks before or in the answer, a body that is too short by its own
# header, the whole file or another part of it instead of the range, and bytes that are not those of the file.
FAULTS = ("500", "429", "reset", "cut", "short", "whole", "shifted", "damaged")


class RangeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: Path | str, *, latency_s: float = 0.0, faults: float = 0.0, kinds: tuple[str, ...] = FAULTS
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency_s, self.faults, self.kinds = Path(folder), latency_s, faults, kinds
        self.requests: list[tuple[str, str | None]] = []  # paths and ranges
        self.failed: Counter[str] = Counter()
        self.chance = random.Random(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self) -> str | None:
        kind = self.chance.choice(self.kinds) if self.chance.random() < self.faults else None
        if kind:
            self.failed[kind] += 1
        return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, self.server.folder / self.path.lstrip("/")
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        time.sleep(server.latency_s)
        if not path.is_file():
            return self._say(404)
        kind = server.fault()
        if kind and kind.isdecimal():
            return self._say(int(kind))
        if kind == "reset":
            self._break()
            return None
        size = path.stat().st_size
        start, stop = (int(part) if part else None for part in asked[6:].split("-")) if asked else (0, size - 1)
        start, stop = start or 0, min(size, (size - 1 if stop is None else stop) + 1)
        partial = asked is not None and kind != "whole"
        if kind == "whole":
            start, stop = 0, size
        if kind == "shifted" and partial and start:
            start, stop = start - 1, stop - 1
        length = stop - start - (kind == "short" and stop - start > 1)
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(2**60 if kind == "endless" else length))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", f'"{size}"')
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        if kind == "endless":
            self.close_connection = True
            while True:  # until the client has gone
                self.wfile.write(bytes(10_000))
        with path.open("rb") as file:
            if kind == "damaged":
                content = bytearray(os.pread(file.fileno(), length, start))
                content[server.chance.randrange(length)] ^= 1 + server.chance.randrange(255)
                self.wfile.write(content)
                return None
            end = start + (length // 2 if kind == "cut" else length)
            while start < end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)
        if kind == "cut":
            self._break()
        return None

    def _break(self) -> None:
        """What is left in the socket is thrown away, and the client is told so."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)

    def _say(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def served(folder: Path | str, **how: Any) -> Iterator[tuple[str, RangeServer]]:
    with RangeServer(folder, **how) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.url, server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with served(sys.argv[1], latency_s=float(sys.argv[2]), faults=float(sys.argv[3])) as (address, _):
        print(address, flush=True)
        sys.stdin.read()
