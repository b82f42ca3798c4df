"""Where rank 0 listens for the other ranks. Nothing that imgrec opens listens on all addresses of a machine where less will do.

Whoever reaches the ports of torch itself (its store, gloo, NCCL) can end a run or become a rank of it, as torch neither
asks who connects nor encrypts. On one machine all of them are at 127.0.0.1; several belong on a network of their own.
"""

import errno
import os
import socket
import sys
from ipaddress import ip_address

from imgrec.distributed.world import World
from imgrec.errors import ConfigError, first_names

LOCAL = "127.0.0.1"
SOCKET_VARIABLE = "IMGREC_SOCKET"  # set by imgrec.distributed.launcher: rank 0's file descriptor of the socket at MASTER_PORT


def open_port(host: str, port: int, world: World) -> socket.socket:
    """A listening socket at the address of this machine that is called `host`, 0: at a free port.

    At all addresses where that is not known: the other machines may know `host` by another address, as here it is a
    loopback address (Debian's own name is 127.0.1.1) or that of a router in front of this one.
    """
    backlog = max(128, world.size)
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        if world.on_one_machine or not ip_address(address[0]).is_loopback:
            try:
                return socket.create_server(address, family=family, backlog=backlog)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=backlog)


def store_socket(host: str, port: int, world: World) -> socket.socket:
    """The socket of torch's store on rank 0, whose own would be at all addresses."""
    inherited = os.environ.pop(SOCKET_VARIABLE, None)
    return open_port(host, port, world) if inherited is None else socket.socket(fileno=int(inherited))


def address_here(listener: socket.socket) -> str:
    """The address at which this machine reaches a listening socket."""
    address: str = listener.getsockname()[0]
    return LOCAL if ip_address(address).is_unspecified else address


def heartbeat_host(world: World) -> str:
    """The name of rank 0's machine for the heartbeat: the one at which the process group has reached it."""
    return LOCAL if world.on_one_machine else os.environ.get("MASTER_ADDR") or socket.gethostname()


def check_gloo_interface(world: World) -> None:
    """ConfigError where GLOO_SOCKET_IFNAME is none of this machine.

    Where all ranks are on one machine and it is not set, gloo gets 127.0.0.1: by default it is at the address of the
    host's name, which may not resolve.
    """
    if world.on_one_machine and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    names, here = os.environ.get("GLOO_SOCKET_IFNAME", ""), [name for _, name in socket.if_nameindex()]
    if unknown := [name for name in names.split(",") if name and name not in here]:
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME={names} in the environment: this machine has no network interface {unknown[0]}. "
            f"It has {first_names(here, 8)}. Unset GLOO_SOCKET_IFNAME, or set it to one of them."
        )
