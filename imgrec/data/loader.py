"""From a split and an order to batches, in this process or in worker processes that no signal disturbs."""

import os
import signal
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from imgrec.data.batch import Batch, ImageSet, Request
from imgrec.data.sampler import EpochBatches
from imgrec.distributed.signals import end_with_parent
from imgrec.errors import DataError

MOST_WORKERS = 16  # more seldom help: the device waits no longer, and each holds prefetched batches
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


POLL_SECONDS = 0.5  # how often the gate is asked while a batch is waited for


class BatchGate(Protocol):
    """Who is asked before batches are handed over (imgrec.training.step_boundary.StepBoundary)."""

    def fetching(self) -> None: ...

    def waiting(self) -> None: ...

    def before(self) -> None: ...


class Loader:
    """Batches of `dataset` as `requests` asks for them; an `iter()` is one epoch, and draws nothing before its first `next()`.

    `gate` is asked before the first of every `every` batches, which is between two optimizer steps.

    It holds a DataLoader but is none: Lightning would replace the sampler (overfit_batches) and warn about few workers, which
    sets in memory do not need. A DataError in a worker arrives as it was raised, not buried in the worker's traceback.
    """

    def __init__(
        self, dataset: ImageSet, requests: EpochBatches, *, num_workers: int, gate: BatchGate | None = None, every: int = 1
    ) -> None:
        self.dataset, self.requests, self.num_workers, self.gate, self.every = dataset, requests, num_workers, gate, every
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            _Guarded(dataset),
            batch_size=None,
            sampler=requests,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker if num_workers else None,
            timeout=POLL_SECONDS if num_workers and gate is not None else 0,
            generator=torch.Generator(),  # its own: seeding workers must not draw from the network's randomness
        )

    def __iter__(self) -> Iterator[Batch]:
        # Workers start here with SIGTERM blocked, for the threads that torch starts in them before `start_worker` too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if self.num_workers else ())
        try:
            batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for place in count():
            at_gate = self.gate if place % self.every == 0 else None
            if at_gate is not None:
                at_gate.fetching()
            try:
                batch = self._next(batches)
            except StopIteration:
                return
            if isinstance(batch, DataError):
                raise batch
            if at_gate is not None:
                at_gate.before()
            yield batch

    def _next(self, batches: Iterator[Batch | DataError]) -> Batch | DataError:
        while True:
            try:
                return next(batches)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                assert self.gate is not None
                self.gate.waiting()

    def __len__(self) -> int:
        return len(self.requests)


class _Guarded(Dataset["Batch | DataError"]):
    """Hands a worker's DataError over as a value."""

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> Batch | DataError:
        if get_worker_info() is None:
            return self.dataset[request]
        try:
            return self.dataset[request]
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def start_worker(worker: int) -> None:
    """One thread each, and deaf to what stops a run: the main process decides when, and needs its batches until then.

    SLURM and a terminal send their signals to every process of a job. SIGTERM from the parent must still work, as that is how
    DataLoader and multiprocessing end a worker; so a thread takes the SIGTERMs and looks at the sender.
    """
    end_with_parent()
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="imgrec-sigterm").start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def worker_count(num_workers: int | Literal["auto"], *, in_memory: bool, processes_here: int) -> int:
    """How many worker processes; "auto": none for sets in memory, else this process's share of the CPUs it may use, 16 at most.

    SLURM_CPUS_PER_TASK already is the share of one task; the affinity mask (which taskset and batch systems narrow, unlike
    os.cpu_count) is shared by the `processes_here` training processes of this machine.
    """
    if num_workers != "auto":
        return num_workers
    if in_memory:
        return 0
    slurm = os.environ.get("SLURM_CPUS_PER_TASK")
    share = int(slurm) if slurm else len(os.sched_getaffinity(0)) // processes_here
    return max(1, min(share, MOST_WORKERS))
