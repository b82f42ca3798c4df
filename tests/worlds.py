"""Ranks of a run as torchrun would start them, forked from the test: torch is imported once, so eight of them take seconds.

rows = started(8, lambda rank: train(run, quiet=True)["best"])   # what each rank gives, in their order
"""

import os
import socket
from collections.abc import Callable
from typing import TypeVar

from ranks import together

T = TypeVar("T")


def started(size: int, work: Callable[[int], T]) -> list[T]:
    """What `work(rank)` gives in each of `size` processes that have torchrun's variables; it makes its own process group. Plain data and tensors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank_of_it(rank: int) -> T:
        os.environ |= {key: str(value) for key, value in variables(rank, size, port=port).items()}
        return work(rank)

    return together(size, rank_of_it, group=False)


def variables(rank: int, size: int, *, port: int, nodes: int = 1) -> dict[str, object]:
    """What torchrun sets for a rank, the machines being equally large."""
    here = size // nodes
    return {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank % here,
        "LOCAL_WORLD_SIZE": here,
        "GROUP_RANK": rank // here,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }
