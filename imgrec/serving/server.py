"""The process around the application: a socket that is bound before anything is loaded, uvicorn, and a stop that answers what was accepted."""

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from imgrec.distributed.signals import handlers_installed
from imgrec.errors import ConfigError
from imgrec.serving.app import Service

BACKLOG = 2048  # connections that the kernel holds until they are accepted


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address that does not listen yet: until the network is loaded connections are refused. ConfigError where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host={host}: no address has this name. Set host=127.0.0.1.") from error
    # With the protocol: asyncio sets TCP_NODELAY only where it is named, and without it each answer came 40 ms later.
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _naming_address(host, port):
            opened.bind(address)
    except ConfigError:
        opened.close()
        raise
    return opened


@contextmanager
def _naming_address(host: str, port: int) -> Iterator[None]:
    """ConfigError for an address that cannot be used. Two processes may bind one port that none listens at: the second fails when it listens."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.EADDRINUSE: f"port={port}: another program listens there. Set port={port % 65535 + 1}, or port=0 for one that is free.",
            errno.EACCES: f"port={port}: this user may not listen there. Set port=8000.",
            errno.EADDRNOTAVAIL: f"host={host}: this machine has no such address. Set host=127.0.0.1.",
        }
        if error.errno not in hints:
            raise
        raise ConfigError(hints[error.errno]) from error


def url_of(opened: socket.socket) -> str:
    """The address to type on this machine."""
    host, port = opened.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started, self._on_stop = on_started, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is not None
        with _naming_address(*sockets[0].getsockname()[:2]):
            await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def run_server(service: Service, opened: socket.socket, *, stop_timeout_s: float, on_started: Callable[[], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; returns when all accepted requests are answered, or after `stop_timeout_s`."""

    def on_stop() -> None:
        service.stopping = True

    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # of the client's address, which nothing here asks for
        lifespan="on",
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(stop_timeout_s)),
    )
    server = _Server(config, on_started, on_stop)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn raises SIGTERM and SIGINT again when it has stopped, which would end the process with their exit codes.
    with handlers_installed(stop):
        if signal.getsignal(signal.SIGUSR1) is stop:  # which stop a training, not a server
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        server.run(sockets=[opened])
