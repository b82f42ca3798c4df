"""The processes of the tests: ranks, forked from the test so that torch is imported once, and commands. None outlives its test.

exit_codes(2, lambda rank: cli.main(argv))              # two ranks, as torchrun starts them
run_ranks(2, lambda rank: fit(run)["best"])             # what the function returns on each of them
run_command(sys.executable, "-m", "imgrec.train").stderr
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

# Each rank of each test would import them for itself: 30 s instead of 1 on two cores.
import matplotlib.backends.backend_agg  # noqa: F401
import torch
import torch.utils.tensorboard
from torch import distributed

import imgrec.training.rank  # noqa: F401
from imgrec.distributed.signals import end_with_parent

LIMIT_S = 300  # ends what hangs; nothing is decided by it on a machine that is only busy
T = TypeVar("T")


@contextmanager
def start_ranks(size: int, work: Callable[[int], Any]) -> Iterator[list[ForkProcess]]:
    """`work(rank)` in each of `size` forks of this process, which are killed at the end; several have torchrun's variables.

    A rank exits with what `work` returns where that is an int, else with 0, and with 1 after an exception.
    """
    port = free_port()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_run_rank, args=(rank, size, port, work)) for rank in range(size)]
    try:
        for rank in ranks:
            with warnings.catch_warnings():
                # Python 3.12 of a fork beside threads: ranks need none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                rank.start()
        yield ranks
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()


def _run_rank(rank: int, size: int, port: int, work: Callable[[int], Any]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= torchrun_variables(rank, size, port=port)
    result = work(rank)
    sys.exit(result if isinstance(result, int) else 0)


def join_ranks(ranks: list[ForkProcess]) -> list[int]:
    """The exit code of each rank, or minus the signal that killed it."""
    deadline = time.monotonic() + LIMIT_S
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    assert None not in codes, f"exit codes after {LIMIT_S} s: {codes}"
    return [code for code in codes if code is not None]


def exit_codes(size: int, work: Callable[[int], Any]) -> list[int]:
    """The exit codes of `size` ranks that run `work(rank)`."""
    with start_ranks(size, work) as ranks:
        return join_ranks(ranks)


def run_ranks(size: int, work: Callable[[int], T], *, group: bool = False) -> list[T]:
    """What `work(rank)` returns on each of `size` ranks: plain data and tensors. An exception on one of them fails the test.

    `group`: connect them by gloo beforehand; without it, `work` does that where it needs to.
    """
    with tempfile.TemporaryDirectory() as folder:

        def save_result(rank: int) -> None:
            if group:
                distributed.init_process_group(
                    "gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=LIMIT_S)
                )
            torch.save(work(rank), f"{folder}/{rank}.pt")
            if distributed.is_initialized():
                distributed.barrier()  # nobody leaves while another one still needs it

        codes = exit_codes(size, save_result)
        assert codes == [0] * size, f"exit codes {codes}; the traceback is on stderr"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]


def torchrun_variables(rank: int, size: int, *, port: int, nodes: int = 1) -> dict[str, str]:
    """The environment that torchrun gives a rank, the nodes being equally large."""
    local_size = size // nodes
    variables = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank % local_size,
        "LOCAL_WORLD_SIZE": local_size,
        "GROUP_RANK": rank // local_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return {name: str(value) for name, value in variables.items()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run_command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that runs to its end, with its output."""
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=LIMIT_S, **options)


def finish_command(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a command that the fixture start_command began."""
    out, err = process.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(condition: Callable[[], object], state: Callable[[], object] = lambda: "") -> None:
    """Poll; a failure shows `state()`."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {state()}"
        time.sleep(0.01)
