"""The address that the server listens at. Imports neither torch nor the server, so that one that is taken is refused at once."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from imgrec.errors import ConfigError, shorten


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address that does not listen yet: until the network is loaded connections are refused. ConfigError where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"host={shorten(host)}: no address has this name. Set host=127.0.0.1.") from error
    if _is_of_many(family, address):
        raise ConfigError(f"host={host}: no client can connect to a multicast or broadcast address. Set host=127.0.0.1.")
    # With the protocol: asyncio sets TCP_NODELAY only where it is named, and without it each answer came 40 ms later.
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with naming_address(host, port):
            opened.bind(address)
    except ConfigError:
        opened.close()
        raise
    return opened


def _is_of_many(family: int, address: tuple[Any, ...]) -> bool:
    """Whether a socket address is one of multicast or broadcast: TCP can listen there, and no client can connect."""
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        try:
            other.connect(address)  # of UDP, so nothing is sent
        except OSError as error:
            if error.errno == errno.EACCES:  # a broadcast address, also one of a network of this machine
                return True
    return ip_address(address[0].partition("%")[0]).is_multicast


@contextmanager
def naming_address(host: str, port: int) -> Iterator[None]:
    """ConfigError for an address that cannot be used. Two processes may bind one port that none listens at: the second fails when it listens."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.EADDRINUSE: f"port={port}: another program listens there. Set port={port % 65535 + 1}, or port=0 for one that is free.",
            errno.EACCES: f"port={port}: this user may not listen there. Set port=8000.",
            errno.EADDRNOTAVAIL: f"host={host}: this machine has no such address. Set host=127.0.0.1.",
        }
        other = f"host={host}: this machine cannot listen there: {error.strerror}. Set host=127.0.0.1."
        raise ConfigError(hints.get(error.errno or 0, other)) from error


def url_of(opened: socket.socket) -> str:
    """The address to type on this machine."""
    host, port = opened.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
