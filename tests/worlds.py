"""Ranks of a run as torchrun would start them, forked from the test: torch is imported once, so eight of them take seconds.

rows = started(8, lambda rank: train(run, quiet=True)["best"])   # what each rank gives, in their order
"""

import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from ranks import together

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
    port = free_port()
    children = []
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of a fork beside threads: see ranks.together
            child = os.fork()
        if child == 0:
            code = 99
            try:
                torch.set_num_threads(1)
                os.environ |= {key: str(value) for key, value in variables(rank, size, port=port).items()}
                code = work()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
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
