"""The connections of imgrec.distributed.heartbeat: one from each rank to rank 0, over which each message is a JSON object on a line of its own."""

import json
import os
import resource
import secrets
import selectors
import socket
import time
import weakref
from collections import deque
from collections.abc import Iterator

from imgrec.distributed.diagnosis import Message

NAP_S = 0.2  # at most: rank 0 reads what has come in bundles, as each reading takes the interpreter from the training

_open: "weakref.WeakSet[Transport]" = weakref.WeakSet()


class LineConnection:
    """A connection that carries one JSON object per line. Never blocks: what does not fit now is sent with the next call."""

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        self.rank = rank  # who is at the other end; None: it has not said so yet
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._out, self._in = bytearray(), bytearray()

    @property
    def sent(self) -> bool:
        return not self._out

    def send(self, message: Message | None = None) -> None:
        """Send a message, and what is left of the ones before. A connection that is gone shows in `receive`."""
        if message is not None:
            self._out += json.dumps(message).encode() + b"\n"
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()

    def receive(self) -> tuple[list[Message], bool]:
        """The messages that have come, and whether the connection still stands."""
        stands = True
        try:
            while chunk := self.socket.recv(1 << 16):
                self._in += chunk
            stands = False
        except BlockingIOError:
            pass
        except OSError:
            stands = False
        *lines, rest = self._in.split(b"\n")
        self._in = bytearray(rest)
        return [json.loads(line) for line in lines], stands


class Transport:
    """On rank 0 a port and a line to each rank that has come; on the others the line to rank 0.

    One thread reads, tells and sends; `put`, `wake` and `sent` are for the others too.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.lines: dict[int, LineConnection] = {}
        self._listener: socket.socket | None = None
        self._token = ""
        self._queue: deque[Message] = deque()  # what was `put`
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.PollSelector()  # epoll's set would be shared with loader workers that were forked
        self._selector.register(self._woken, selectors.EVENT_READ)
        _open.add(self)

    def listen(self) -> tuple[list[str], int, str]:
        """Open the port; how it is reached: host names to try, port, and the token that lets a process in."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:  # often 1024, and a connection is a file
            more = soft + self.world_size
            resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(more, hard), hard))
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.world_size)
        else:
            self._listener = socket.create_server(("", 0), backlog=self.world_size)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        hosts = [os.environ[key] for key in ("MASTER_ADDR",) if key in os.environ]  # where the process group has met already
        return [*hosts, socket.gethostname()], self._listener.getsockname()[1], self._token

    def connect(self, hosts: list[str], port: int, token: str, who: Message, timeout_s: float) -> None:
        """To the port of rank 0; `who` is said there first. RuntimeError where none of the hosts answers."""
        failures = []
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), timeout=min(30.0, timeout_s))
            except OSError as error:
                failures.append(f"{host}:{port} ({error})")
                continue
            self.lines[0] = LineConnection(connection, rank=0)
            self._watch(self.lines[0])
            self.lines[0].send({**who, "token": token})
            return
        raise RuntimeError(
            f"rank {self.rank} on {socket.gethostname()} cannot reach rank 0 at {' or '.join(failures)}. "
            "Let the machines of the run talk to one another on all ports."
        )

    def read(self, timeout: float) -> Iterator[tuple[int, Message | None]]:
        """(rank, message) of all that has come within `timeout` seconds, in its order; None where a rank's connection has ended."""
        ready = [key for key, _ in self._selector.select(timeout)]
        if self.rank == 0 and ready:
            time.sleep(min(NAP_S, self.world_size / 1000))
            ready = [key for key, _ in self._selector.select(0)]
        for key in ready:
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                yield from self._hear(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                self._watch(LineConnection(self._listener.accept()[0]))
            except BlockingIOError:
                return

    def _hear(self, line: LineConnection) -> Iterator[tuple[int, Message | None]]:
        messages: list[Message] = []
        try:
            messages, stands = line.receive()
            if line.rank is None and messages:  # only a rank knows the token; others, such as a scan of the ports, are sent away
                stands = secrets.compare_digest(str(messages[0]["token"]), self._token)
                line.rank = messages[0]["rank"] if stands else None
        except (ValueError, TypeError, KeyError):
            stands = False
        if line.rank is not None:
            self.lines[line.rank] = line
            for message in messages:
                yield line.rank, message
        if not stands:
            self._selector.unregister(line.socket)
            line.socket.close()
            if line.rank is not None:
                del self.lines[line.rank]
                yield line.rank, None

    def put(self, message: Message) -> None:
        """Hand a message to the thread, which tells it."""
        self._queue.append(message)
        self.wake()

    def wake(self) -> None:
        """End the thread's waiting in `read`."""
        self._wake.send(b".")

    @property
    def sent(self) -> bool:
        """Is everything that was put or told on its way?"""
        return not self._queue and all(line.sent for line in list(self.lines.values()))

    def tell(self, message: Message) -> None:
        """To rank 0; from rank 0 to all."""
        for line in list(self.lines.values()):
            if line.sent or "doing" not in message:  # a rank that does not read needs no more reports
                line.send(message)

    def send(self) -> None:
        """Tell what was put, and send what did not fit before."""
        while self._queue:
            self.tell(self._queue[0])
            self._queue.popleft()
        for line in self.lines.values():
            line.send()

    def close(self) -> None:
        _open.discard(self)
        for connection in list(self._sockets()):
            connection.close()
        self._selector.close()

    def _watch(self, line: LineConnection) -> None:
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _sockets(self) -> Iterator[socket.socket]:
        yield self._wake
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            yield key.fileobj


def _close_in_child() -> None:
    # A loader worker that was forked holds the connection too: it would outlive a killed rank, and hide its death.
    for connections in list(_open):
        for connection in connections._sockets():
            connection.close()


os.register_at_fork(after_in_child=_close_in_child)
