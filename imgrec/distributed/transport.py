"""The connections of imgrec.distributed.heartbeat: one from each rank to rank 0, with a JSON object on each line.

Only the ranks know the secret of the run, which rank 0 gives them through the process group. Their first line is signed
with it (HMAC, RFC 2104). What has no such line is dropped and never parsed, whoever sent it, such as a port
scan or another run. The port is closed once all ranks have connected.
"""

import hmac
import json
import os
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from imgrec.distributed.diagnosis import Message
from imgrec.distributed.ports import heartbeat_host, open_port
from imgrec.distributed.world import read_world

READ_DELAY_S = 0.2  # at most: rank 0 reads many messages at once, as each read takes the interpreter from the training
LINE_LIMIT = 1 << 16  # bytes; ours are shorter than 2,000
MOST_UNKNOWN = 64  # connections without a first line that rank 0 holds, beside one for each rank


class LineConnection:
    """A connection that carries one JSON object per line. Never blocks: the next call sends what does not fit now."""

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        self.rank = rank  # of the other end; None: not known yet
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._out, self._in = bytearray(), b""

    @property
    def sent(self) -> bool:
        return not self._out

    def send(self, message: Message | None = None) -> None:
        """Send a message, after the rest of earlier ones. `receive` reports a closed connection."""
        if message is not None:
            self.send_line(json.dumps(message).encode())
            return
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()

    def send_line(self, line: bytes) -> None:
        self._out += line + b"\n"
        self.send()

    def receive(self) -> tuple[list[bytes], bool]:
        """Lines received, and whether the connection goes on: it is not closed, and no line is longer than LINE_LIMIT."""
        try:
            chunk = self.socket.recv(LINE_LIMIT)
        except BlockingIOError:
            return [], True
        except OSError:
            return [], False
        *lines, self._in = (self._in + chunk).split(b"\n")
        return lines, bool(chunk) and len(self._in) <= LINE_LIMIT


class Transport:
    """On rank 0 a port and a connection to each rank; on the others a connection to rank 0.

    One thread calls `read` and `send`; `wake` and `sent` may be called from others. `note` writes a line to the log.
    """

    def __init__(self, rank: int, world_size: int, note: Callable[[str], None]) -> None:
        self.rank, self.world_size, self._note = rank, world_size, note
        self.lines: dict[int, LineConnection] = {}
        self._missing = set(range(1, world_size))  # ranks that rank 0 has not heard yet
        self._unknown: dict[socket.socket, str] = {}  # connections without a first line, the oldest first; their address
        self._any_dropped = False
        self._listener: socket.socket | None = None
        self._secret = b""
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.PollSelector()  # epoll's set would be shared with loader workers that were forked
        self._selector.register(self._woken, selectors.EVENT_READ)
        # A forked loader worker holds the connections too: it would outlive a killed rank, and hide its death.
        os.register_at_fork(after_in_child=self.close)

    def listen(self) -> tuple[list[str], int, bytes]:
        """Open the port; returns the hosts to try, the port, and the secret that signs the first line of a rank."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:  # often 1024, and each connection is an open file
            more = soft + self.world_size + MOST_UNKNOWN
            resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(more, hard), hard))
        world = read_world()
        host = heartbeat_host(world)
        self._listener = open_port(host, 0, world)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._secret = secrets.token_bytes(32)
        address, port = self._listener.getsockname()[:2]
        return [host if ip_address(address).is_unspecified else address, host, socket.gethostname()], port, self._secret

    def connect(self, hosts: list[str], port: int, secret: bytes, who: Message, timeout_s: float) -> None:
        """Connect to the port of rank 0 and send `who`. RuntimeError where none of the hosts answers."""
        failures = []
        for host in dict.fromkeys(hosts):
            try:
                connection = socket.create_connection((host, port), timeout=min(30.0, timeout_s))
            except OSError as error:
                failures.append(f"{host}:{port} ({error})")
                continue
            self.lines[0] = LineConnection(connection, rank=0)
            self._selector.register(connection, selectors.EVENT_READ, self.lines[0])
            self.lines[0].send_line(signed(json.dumps({"rank": self.rank, **who}).encode(), secret))
            return
        raise RuntimeError(
            f"rank {self.rank} on {socket.gethostname()} cannot reach rank 0 at {' or '.join(failures)}. "
            "Open all ports between the machines of the run."
        )

    def read(self, timeout: float) -> Iterator[tuple[int, Message | None]]:
        """(rank, message) in order, after waiting at most `timeout` seconds; None where a connection has closed."""
        ready = [key for key, _ in self._selector.select(timeout)]
        if self.rank == 0 and ready:
            time.sleep(min(READ_DELAY_S, self.world_size / 1000))
            ready = [key for key, _ in self._selector.select(0)]
        accepts = False
        for key in ready:
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._listener:
                accepts = True  # after the lines that have come, so that no flood of other connections displaces a rank
            else:
                yield from self._receive(key.data)
        if self._listener is not None and not self._missing:
            self._stop_listening(self._listener)
        elif accepts:
            self._accept()

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(self.world_size + MOST_UNKNOWN):
            try:
                connection, address = self._listener.accept()
            except OSError:  # no more of them, or one that is gone again, or no more open files
                return
            self._selector.register(connection, selectors.EVENT_READ, LineConnection(connection))
            self._unknown[connection] = address[0]
            if len(self._unknown) > len(self._missing) + MOST_UNKNOWN:
                self._drop(next(iter(self._unknown)))

    def _stop_listening(self, listener: socket.socket) -> None:
        self._listener = None
        self._close(listener)
        for connection in list(self._unknown):
            self._drop(connection)

    def _receive(self, line: LineConnection) -> Iterator[tuple[int, Message | None]]:
        lines, is_open = line.receive()
        if line.rank is None and (lines or not is_open):
            first = verified(lines[0], self._secret) if lines else None
            rank = None if first is None else json.loads(first)["rank"]
            if first is None or rank not in self._missing:  # a copy of a line that a rank has sent
                self._drop(line.socket)
                return
            lines[0], line.rank = first, rank
            self.lines[rank] = line
            self._missing.remove(rank)
            del self._unknown[line.socket]
        if line.rank is None:
            return
        for text in lines:
            yield line.rank, json.loads(text)
        if not is_open:
            self._close(line.socket)
            del self.lines[line.rank]
            yield line.rank, None

    def _drop(self, connection: socket.socket) -> None:
        """Close a connection that is of no rank; the first one is worth a line in the log."""
        address = self._unknown.pop(connection)
        self._close(connection)
        if not self._any_dropped:
            self._any_dropped = True
            self._note(f"dropped a connection from {address}, which is no rank of this run; others will be without a line")

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def wake(self) -> None:
        """End the thread's wait in `read`."""
        self._wake.send(b".")

    @property
    def sent(self) -> bool:
        """Whether all messages are sent."""
        return all(line.sent for line in list(self.lines.values()))

    def send(self, message: Message | None = None) -> None:
        """Send a message to rank 0, or from rank 0 to all, after the rest of earlier ones."""
        for line in list(self.lines.values()):
            if line.sent or message is None or "doing" not in message:  # a rank that does not read needs no more reports
                line.send(message)

    def close(self) -> None:
        self._wake.close()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()


def signed(text: bytes, secret: bytes) -> bytes:
    """The text behind its HMAC."""
    return hmac.new(secret, text, "sha256").hexdigest().encode() + b" " + text


def verified(line: bytes, secret: bytes) -> bytes | None:
    """The text of a line from `signed` with this secret, None for any other bytes."""
    text = line.partition(b" ")[2]
    return text if hmac.compare_digest(line, signed(text, secret)) else None
