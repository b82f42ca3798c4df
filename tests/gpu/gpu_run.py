"""Runs of a few steps on a device, in this process or in fresh ones: CUDA does not work in a fork of a process that used it."""

import faulthandler
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from processes import free_port, torchrun_variables
from resumed_runs import EVERYTHING
from torch import distributed

from imgrec import config
from imgrec.config.schema import RunConfig
from imgrec.train import fit

LIMIT_S = 150  # ends what hangs before tests/gpu/run.sh ends all tests; the longest took 53 s beside six others


def on(device: str) -> tuple[str, ...]:
    """Overrides that choose a device."""
    return f"trainer.accelerator={device}", "trainer.devices=1"


def everything(folder: Path, device: str, *words: str) -> RunConfig:
    """The run of tests/test_resume.py, with all that a resume can get wrong, on a device."""
    return config.load("train", [*EVERYTHING, *on(device), f"runs_dir={folder}", "name=r", "id=a", *words])


class StepLosses(pl.Callback):
    """The loss of each step, read after the run: nothing waits for the device meanwhile."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._losses.append(pl_module.step_loss())

    def values(self) -> list[float]:
        return [float(loss) for loss in self._losses]


def step_losses(run: RunConfig, *callbacks: pl.Callback) -> list[float]:
    losses = StepLosses()
    fit(run, quiet=True, callbacks=[losses, *callbacks])
    return losses.values()


def fresh_ranks(work: Callable[..., Any], *args: Any, size: int = 1, backend: str | None = None) -> list[int]:
    """Exit codes of `work(rank, *args)` in fresh processes, one each on the first device; `work` is a module's function.

    Several have torchrun's variables, as if each were alone on its machine: so two share one GPU, which NCCL refuses and
    gloo does not. backend: connects them beforehand; imgrec then uses that process group.
    """
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            spawn.Process(target=_run_rank, args=(rank, size, port, backend, f"file://{folder}/store", work, args))
            for rank in range(size)
        ]
        try:
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(LIMIT_S)
            return [-1000 if process.exitcode is None else process.exitcode for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def fresh_results(work: Callable[..., Any], *args: Any, size: int = 1, backend: str | None = None) -> list[Any]:
    """What `work(rank, *args)` returns in fresh processes: plain data and tensors."""
    with tempfile.TemporaryDirectory() as folder:
        assert fresh_ranks(_save_result, folder, work, args, size=size, backend=backend) == [0] * size
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]


def _save_result(rank: int, folder: str, work: Callable[..., Any], args: Sequence[Any]) -> None:
    torch.save(work(rank, *args), f"{folder}/{rank}.pt")


def _run_rank(
    rank: int, size: int, port: int, backend: str | None, store: str, work: Callable[..., Any], args: Sequence[Any]
) -> None:
    faulthandler.dump_traceback_later(LIMIT_S - 10)  # says where it hangs
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= torchrun_variables(rank, size, port=port, nodes=size)
    if backend is not None:
        limit = timedelta(seconds=LIMIT_S)
        distributed.init_process_group(backend, store, rank=rank, world_size=size, timeout=limit)
    work(rank, *args)
    if distributed.is_initialized():
        distributed.barrier()  # nobody leaves while another one still needs it
        distributed.destroy_process_group()
