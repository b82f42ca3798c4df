"""From a split and an order to batches, in this process or in worker processes that no signal disturbs."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from imgrec.data.batch import Batch, Request
from imgrec.data.image_set import ImageSet
from imgrec.data.sampler import EpochBatches
from imgrec.distributed.signals import end_with_parent, stop_reason
from imgrec.distributed.world import env_number
from imgrec.errors import DataError, Stopped

MOST_WORKERS = 16  # more seldom help: the device waits no longer, and each holds prefetched batches
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
POLL_SECONDS = 0.5  # how often a stop is looked for while a batch is waited for


class StoppedWaiting(Stopped):
    """The run was asked to stop while it waited for a batch."""


class Loader:
    """Batches of `dataset` as `requests` asks for them; an `iter()` is one epoch, and draws nothing before its first `next()`.

    stoppable: raise StoppedWaiting when the run is asked to stop and a worker does not deliver. Only for a single rank:
    several stop at a step boundary or by the watchdog, as the others are in a collective that this one has to join.

    It holds a DataLoader but is none: Lightning would replace the sampler (overfit_batches) and warn about few workers,
    which sets in memory do not need. A DataError in a worker arrives as it was raised, not in the worker's traceback.
    """

    def __init__(
        self, dataset: ImageSet, requests: EpochBatches | Sequence[Request], *, num_workers: int, stoppable: bool = False
    ) -> None:
        self.dataset, self.requests, self.num_workers = dataset, requests, num_workers
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            _Guarded(dataset),
            batch_size=None,
            sampler=requests,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker if num_workers else None,
            timeout=POLL_SECONDS if num_workers and stoppable else 0,
            generator=torch.Generator(),  # its own: seeding workers must not draw from the network's randomness
        )

    def __iter__(self) -> Iterator[Batch]:
        # Workers start here with SIGTERM blocked, for the threads that torch starts in them before `start_worker` too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if self.num_workers else ())
        try:
            batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if (reason := stop_reason()) is not None:
                    raise StoppedWaiting(
                        f"stopped by {reason} while waiting for data. Start the same command again to resume."
                    ) from None
                continue
            if isinstance(batch, DataError):
                raise DataError(*batch.args)  # not `batch`, whose traceback would hold this frame, which holds it
            yield batch

    def close(self) -> None:
        """End the worker processes, also those that hang.

        Without this they end when the loader is collected, and as it stands in reference cycles (of the trainer), torch's
        queues are gone by then: it would wait 5 s for workers that nothing tells to end.
        """
        if (batches := self._loader._iterator) is not None:
            # First the thread that pins memory, as torch does: a worker that ends may leave half a message in what it reads.
            if (pinning := getattr(batches, "_pin_memory_thread", None)) is not None:
                batches._pin_memory_thread_done_event.set()  # type: ignore[attr-defined]
                batches._worker_result_queue.put((None, None))  # type: ignore[attr-defined]
                pinning.join()
            for worker in batches._workers:  # type: ignore[attr-defined]
                worker.terminate()
            batches._shutdown_workers()  # type: ignore[attr-defined]  # as Lightning does with a DataLoader
            self._loader._iterator = None

    def __len__(self) -> int:
        return len(self.requests)


class _Guarded(Dataset["Batch | DataError"]):
    """Hands a DataError over as a value."""

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> Batch | DataError:
        try:
            return self.dataset[request]
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def start_worker(worker: int) -> None:
    """One thread each. Signals that stop a run are ignored, as the main process needs its batches until it stops.

    SLURM and a terminal send their signals to every process of a job. SIGTERM from the parent must still work, as that is
    how DataLoader and multiprocessing end a worker; so a thread receives the SIGTERMs and checks the sender.
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
    """How many worker processes; "auto": none for sets in memory, else this process's share of its CPUs, 16 at most.

    SLURM_CPUS_PER_TASK already is the share of one task; the affinity mask (which taskset and batch systems narrow,
    unlike os.cpu_count) is shared by the `processes_here` training processes of this machine.
    """
    if num_workers != "auto":
        return num_workers
    if in_memory:
        return 0
    share = env_number("SLURM_CPUS_PER_TASK", len(os.sched_getaffinity(0)) // processes_here)
    return max(1, min(share, MOST_WORKERS))
