"""Ranks of a run as torchrun would start them, forked from the test: torch is imported once, so eight of them take seconds.

rows = started(8, lambda rank: train(run, quiet=True)["best"])   # what each rank gives, in their order
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from ranks import fork, together

T = TypeVar("T")


def started(size: int, work: Callable[[int], T]) -> list[T]:
    """What `work(rank)` gives in each of `size` processes that have torchrun's variables; it makes its own process group. Plain data and tensors."""
    port = free_port()

    def rank_of_it(rank: int) -> T:
        os.environ |= {key: str(value) for key, value in variables(rank, size, port=port).items()}
        return work(rank)

    return together(size, rank_of_it, group=False)


def exit_codes(size: int, work: Callable[[], int]) -> list[int]:
    """The exit codes of processes that have torchrun's variables and end with what `work()` gives, or before."""
    return codes(forked(size, lambda rank: work()))


def forked(size: int, work: Callable[[int], Any]) -> list[int]:
    """The process numbers of `size` forks of this process; more than one are ranks, as torchrun starts them.

    Each ends with what `work(rank)` gives where that is an exit code, else with 0, and with 1 by an exception; at the latest with this process.
    """
    port = free_port()
    children = []
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(size):
        if (child := fork()) == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                if size > 1:
                    os.environ |= {key: str(value) for key, value in variables(rank, size, port=port).items()}
                given = work(rank)
                code = given if isinstance(given, int) else 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def codes(children: list[int]) -> list[int]:
    """Exit codes, minus the signal where one ended the process."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


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
