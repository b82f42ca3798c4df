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


def store_socket(host: str, port: int, world: World) -> int:
    """The file descriptor of a socket for torch's store on rank 0, whose own would be at all addresses."""
    inherited = os.environ.pop(SOCKET_VARIABLE, None)
    return open_port(host, port, world).detach() if inherited is None else int(inherited)


def heartbeat_host(world: World) -> str:
    """The name of rank 0's machine for the heartbeat: the one at which the process group has reached it."""
    return LOCAL if world.on_one_machine else os.environ.get("MASTER_ADDR") or socket.gethostname()


def keep_gloo_local(world: World) -> None:
    """On one machine gloo listens at 127.0.0.1, unless the user says otherwise; its default is the host's name, which may not resolve."""
    if world.on_one_machine and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
