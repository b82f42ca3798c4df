"""The connections of imgrec.distributed.heartbeat: one from each rank to rank 0, with a JSON object on each line."""

import json
import os
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Iterator

from imgrec.distributed.diagnosis import Message

READ_DELAY_S = 0.2  # at most: rank 0 reads many messages at once, as each read takes the interpreter from the training


class LineConnection:
    """A connection that carries one JSON object per line. Never blocks: the next call sends what does not fit now."""

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        self.rank = rank  # of the other end; None: not known yet
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._out, self._in = bytearray(), bytearray()

    @property
    def sent(self) -> bool:
        return not self._out

    def send(self, message: Message | None = None) -> None:
        """Send a message, after the rest of earlier ones. `receive` reports a closed connection."""
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
        """The messages received, and whether the connection is open."""
        is_open = False
        try:
            while chunk := self.socket.recv(1 << 16):
                self._in += chunk
        except BlockingIOError:
            is_open = True
        except OSError:
            pass
        *lines, rest = self._in.split(b"\n")
        self._in = bytearray(rest)
        return [json.loads(line) for line in lines], is_open


class Transport:
    """On rank 0 a port and a connection to each rank; on the others a connection to rank 0.

    One thread calls `read` and `send`; `wake` and `sent` may be called from others.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.lines: dict[int, LineConnection] = {}
        self._listener: socket.socket | None = None
        self._token = ""
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.PollSelector()  # epoll's set would be shared with loader workers that were forked
        self._selector.register(self._woken, selectors.EVENT_READ)
        # A forked loader worker holds the connections too: it would outlive a killed rank, and hide its death.
        os.register_at_fork(after_in_child=self.close)

    def listen(self) -> tuple[list[str], int, str]:
        """Open the port; returns host names to try, the port, and the token that a rank has to send."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:  # often 1024, and each connection is an open file
            more = soft + self.world_size
            resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(more, hard), hard))
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=self.world_size)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        master = [os.environ["MASTER_ADDR"]] if "MASTER_ADDR" in os.environ else []  # which the process group has reached
        return [*master, socket.gethostname()], self._listener.getsockname()[1], self._token

    def connect(self, hosts: list[str], port: int, token: str, who: Message, timeout_s: float) -> None:
        """Connect to the port of rank 0 and send `who`. RuntimeError where none of the hosts answers."""
        failures = []
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), timeout=min(30.0, timeout_s))
            except OSError as error:
                failures.append(f"{host}:{port} ({error})")
                continue
            self.lines[0] = LineConnection(connection, rank=0)
            self._selector.register(connection, selectors.EVENT_READ, self.lines[0])
            self.lines[0].send({**who, "token": token})
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
        for key in ready:
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                yield from self._receive(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection = self._listener.accept()[0]
            except BlockingIOError:
                return
            self._selector.register(connection, selectors.EVENT_READ, LineConnection(connection))

    def _receive(self, line: LineConnection) -> Iterator[tuple[int, Message | None]]:
        messages: list[Message] = []
        try:
            messages, is_open = line.receive()
            if line.rank is None and messages:  # only a rank knows the token; others, such as port scans, are rejected
                is_open = secrets.compare_digest(str(messages[0]["token"]), self._token)
                line.rank = messages[0]["rank"] if is_open else None
        except (ValueError, TypeError, KeyError):
            is_open = False
        if line.rank is not None:
            self.lines[line.rank] = line
            for message in messages:
                yield line.rank, message
        if not is_open:
            self._selector.unregister(line.socket)
            line.socket.close()
            if line.rank is not None:
                del self.lines[line.rank]
                yield line.rank, None

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
