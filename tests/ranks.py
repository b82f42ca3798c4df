"""Processes that share a gloo group, forked from the test, so that torch, and what a training imports, is imported once."""

import io
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import distributed

import imgrec.training.trainer  # noqa: F401  # each child of each test would import it for itself: 30 s instead of 1 on two cores
from imgrec.distributed.signals import end_with_parent

SECONDS = 60  # a hang longer than this is a failure
T = TypeVar("T")


def together(size: int, work: Callable[[int], T], *, group: bool = True) -> list[T]:
    """What `work(rank)` gives in each of `size` processes, in the order of the ranks: plain data and tensors. One that fails fails the test.

    `group`: do they share a gloo group already when `work` begins?
    """
    pipes, children = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(size):
                here, there = Pipe(duplex=False)
                if (child := fork()) == 0:
                    _work(rank, size, f"file://{folder}/store" if group else None, work, there)
                there.close()
                pipes.append(here)
                children.append(child)
            answers = [pipe.recv() if pipe.poll(SECONDS) else (f"no answer in {SECONDS} s", b"") for pipe in pipes]
        finally:
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)
    failed = "\n".join(f"rank {rank}: {error}" for rank, (error, _) in enumerate(answers) if error)
    assert not failed, failed
    return [torch.load(io.BytesIO(data), weights_only=False) for _, data in answers]


def fork() -> int:
    """os.fork, of a child that ends with this process at the latest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of a fork beside threads: the child needs none
        child = os.fork()
    if child == 0:
        end_with_parent()
    return child


def _work(rank: int, size: int, store: str | None, work: Callable[[int], Any], pipe: Connection) -> None:
    try:
        torch.set_num_threads(1)
        if store is not None:
            distributed.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
        data = io.BytesIO()
        torch.save(work(rank), data)
        if distributed.is_initialized():
            distributed.barrier()
        pipe.send((None, data.getvalue()))
    except BaseException:
        pipe.send((traceback.format_exc(), b""))
    finally:
        os._exit(0)  # not back into pytest
