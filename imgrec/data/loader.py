"""From a split and an order to batches, in this process or in worker processes that no signal disturbs."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from multiprocessing.connection import wait
from multiprocessing.util import get_temp_dir
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from imgrec.data.allocator import keep_freed_memory
from imgrec.data.batch import Requests
from imgrec.data.shared_batches import SharedBatches
from imgrec.distributed.signals import end_with_parent, signal_name, stop_reason
from imgrec.distributed.world import env_number
from imgrec.errors import ConfigError, DataError, Died, Stopped

MOST_WORKERS = 16  # more seldom help: the device waits no longer, and each holds prefetched batches
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
END_SECONDS = 1.0  # in which a process that closed its connection has ended
NOT_SENT = 74  # exit code of a worker that could not hand over a batch; EX_IOERR of sysexits.h
POLL_SECONDS = 0.5  # how often a stop is looked for while a batch is waited for

Mark = Callable[[Literal["data_wait", "copy"]], object]
_Batch_co = TypeVar("_Batch_co", bound=tuple[Any, ...], covariant=True)


class StoppedWaiting(Stopped):
    """The run was asked to stop while it waited for a batch."""


class Source(Protocol[_Batch_co]):
    """What batches are read from: an ImageSet, or the files of a prediction."""

    def __getitem__(self, request: Any, /) -> _Batch_co: ...


def raise_died(loss: str) -> None:
    raise Died(f"{loss}. Start the same command again.")


class Loader(Generic[_Batch_co]):
    """Batches of `dataset` as `requests` asks for them; an `iter()` is one epoch, and draws nothing before its first `next()`.

    timeout_s: raise StoppedWaiting when the run is asked to stop and a worker does not deliver, and Died when none
    delivers for that long. Only for a single rank: several stop at a step boundary, by the watchdog or the heartbeat, as
    the others are in a collective that this one has to join. lost: called with a sentence about a worker that was killed;
    if it returns, this process reads the batches from there on. doing: of which batch the data is waited for, for errors.
    mark: called with what the time is spent on from then on, "data_wait" or, for a batch that has come, "copy".
    for_gpu: batches are in pinned memory, which opens a context on the GPU.

    It holds a DataLoader but is none: Lightning would replace the sampler (overfit_batches) and warn about few workers,
    which sets in memory do not need. A DataError in a worker arrives as it was raised, not in the worker's traceback.
    """

    def __init__(
        self,
        dataset: Source[_Batch_co],
        requests: Requests | Sequence[Any],
        *,
        num_workers: int,
        timeout_s: float | None = None,
        lost: Callable[[str], None] = raise_died,
        doing: Callable[[], str] = lambda: "waiting for data",
        mark: Mark = lambda part: None,
        for_gpu: bool = False,
    ) -> None:
        self.dataset, self.requests, self.num_workers = dataset, requests, num_workers
        self._timeout_s, self._lost, self._doing, self._mark = timeout_s or inf, lost, doing, mark
        self._shared = SharedBatches(num_workers)
        self._loader: DataLoader[_Batch_co | DataError] = DataLoader(
            _Guarded(dataset),
            batch_size=None,
            sampler=requests,
            num_workers=num_workers,
            collate_fn=self._shared.share,
            pin_memory=for_gpu,
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker if num_workers else None,
            timeout=POLL_SECONDS if num_workers and timeout_s else 0,
            generator=torch.Generator(),  # its own: seeding workers must not draw from the network's randomness
        )

    def __iter__(self) -> Iterator[_Batch_co]:
        batches: Iterator[_Batch_co | DataError] | None = None
        taken, began = 0, time.monotonic()
        while True:
            self._mark("data_wait")
            try:
                batches = batches or self._open()
                batch = self._shared.receive(next(batches))
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # OSError, EOFError: killed while it handed a batch over
                if loss := self._loss(error):
                    self._lost(loss)
                    batches = self._read_here(taken)
                    self.close()
                    continue
                if not str(error).startswith("DataLoader timed out"):
                    raise
                self._check_wait(time.monotonic() - began)
                if batches is None:  # the workers of the last epoch have not begun this one
                    self.close()
                continue
            if isinstance(batch, DataError):
                raise DataError(*batch.args)  # not `batch`, whose traceback would hold this frame, which holds it
            taken += 1
            self._mark("copy")
            yield batch
            began = time.monotonic()

    def _open(self) -> Iterator[_Batch_co | DataError]:
        """The DataLoader's iterator, whose workers are started or begin again; ConfigError where there is no room for them."""
        if not self.num_workers and not self._loader.pin_memory:
            return self._read_here(0)  # it would do the same in 28 us more a batch
        # Workers start here with SIGTERM blocked, for the threads that torch starts in them before `start_worker` too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if self.num_workers else ())
        on_child = signal.getsignal(signal.SIGCHLD)
        try:
            if self.num_workers:
                get_temp_dir()  # workers inherit it: they are often killed, and would leave theirs in /tmp
                if self._loader._iterator is None:
                    _check_room(self.num_workers)
            return iter(self._loader)
        except OSError as error:
            raise ConfigError(
                f"num_workers={self.num_workers}: they cannot be started: {error.strerror}. Make room in /dev/shm "
                f"(docker run --shm-size=1g) and {os.environ.get('TMPDIR', '/tmp')}, or set num_workers=0."
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # torch's handler would raise the loss of a worker wherever the main thread is, in an optimizer's step too.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, on_child)

    def _read_here(self, taken: int) -> Iterator[_Batch_co | DataError]:
        """In this process, without the batches that were taken already."""
        return map(_Guarded(self.dataset).__getitem__, islice(self.requests, taken, None))

    def _loss(self, error: Exception) -> str | None:
        """What became of workers that have ended, if any has."""
        timeout = 0 if isinstance(error, RuntimeError) else END_SECONDS
        closed = wait([worker.sentinel for worker in self._workers()], timeout=timeout)
        for worker in self._workers():
            if worker.sentinel in closed:
                worker.join()  # a process that is killed closes its files first, and then has an exit code
        codes = {worker.pid: worker.exitcode for worker in self._workers() if worker.exitcode is not None}
        ends = [f"{pid}, {_describe_end(code)}" for pid, code in codes.items()]
        return f"the loss of loader worker {'; '.join(ends)}" if ends else None

    def _check_wait(self, waited: float) -> None:
        if (reason := stop_reason()) is not None:
            raise StoppedWaiting(f"stopped by {reason} while {self._doing()}. Start the same command again to resume.")
        if waited > self._timeout_s:
            pids = ", ".join(str(worker.pid) for worker in self._workers())
            raise Died(
                f"trainer.timeout_s={self._timeout_s:g}: the loader workers ({pids}) have delivered nothing for that long. "
                f"Start the same command again, with trainer.timeout_s={2 * self._timeout_s:g} if reading is only slow."
            )

    def _workers(self) -> list[Any]:
        return [] if self._loader._iterator is None else self._loader._iterator._workers  # type: ignore[attr-defined]

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
            for worker in self._workers():
                worker.terminate()
            batches._shutdown_workers()  # type: ignore[attr-defined]  # as Lightning does with a DataLoader
            for worker in self._workers():
                worker.kill()  # one that was stopped does not end by itself, and Python would wait for it at its exit
            self._loader._iterator = None

    def __len__(self) -> int:
        return len(self.requests)


def _check_room(workers: int) -> None:
    """OSError where there is no room for what torch's iterator makes; without some of it, its __del__ prints a traceback."""
    _ = [multiprocessing.Event(), *(multiprocessing.Queue() for _ in range(workers + 1))]


class _Guarded(Dataset["_Batch_co | DataError"]):
    """Hands a DataError over as a value."""

    def __init__(self, dataset: Source[_Batch_co]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Any) -> _Batch_co | DataError:
        try:
            return self.dataset[request]
        except DataError as error:
            return error


def _describe_end(code: int) -> str:
    if code == NOT_SENT:
        return "which could not hand over a batch (out of memory? set a lower num_workers)"
    if code >= 0:
        return f"which ended with exit code {code}"
    memory = " (out of memory? set a lower num_workers)" if code == -signal.SIGKILL else ""
    return f"killed by {signal_name(-code)}{memory}"


def start_worker(worker: int) -> None:
    """One thread each. Signals that stop a run are ignored, as the main process needs its batches until it stops.

    SLURM and a terminal send their signals to every process of a job. SIGTERM from the parent must still work, as that is
    how DataLoader and multiprocessing end a worker; so a thread receives the SIGTERMs and checks the sender.
    """
    end_with_parent()
    keep_freed_memory()
    torch.set_num_threads(1)
    # Python's own prints a traceback and leaves the batch out, and the main process waits for it.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="imgrec-sigterm").start()


def _end_unsent(error: BaseException, batch: object) -> None:
    os._exit(NOT_SENT)


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
