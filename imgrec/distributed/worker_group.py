"""The ranks of one evaluation or prediction: each gets whole batches, and rank 0 collects their results in order.

The batches are those of one process, since the last bits of a result may depend on the batch that an image is in. Ranks
have no time limit while they make progress; the heartbeat ends those that hang. One process imports no torch here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

from imgrec.distributed.diagnosis import WAITING
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.process_group import connect
from imgrec.distributed.world import read_world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_T = TypeVar("_T")
ITEMS_PER_MESSAGE = 4096  # items of each rank that go over the network in one message: some MB
START_AGAIN = "Start the same command again."
NO_TIMEOUT = timedelta(days=365)  # shares take different times, and the heartbeat ends a rank that hangs


class WorkerGroup:
    """The ranks of a torch.distributed group (None: the default), or one process, with a status for the heartbeat."""

    def __init__(
        self, rank: int = 0, size: int = 1, *, process_group: "ProcessGroup | None" = None, heartbeat: Heartbeat | None = None
    ) -> None:
        self.rank, self.size, self.process_group, self.heartbeat = rank, size, process_group, heartbeat

    @property
    def alone_timeout_s(self) -> float | None:
        """How long one process waits for its files; of several the heartbeat ends one that hangs."""
        return self.heartbeat.timeout_s if self.heartbeat is not None and self.size == 1 else None

    def set_status(self, doing: str) -> None:
        """Set what the heartbeat reports of this rank."""
        if self.heartbeat is not None:
            self.heartbeat.doing = doing

    def all_gather(self, value: _T) -> list[_T]:
        """The value of each rank, on all of them."""
        if self.size == 1:
            return [value]
        values: list[_T] = [value] * self.size
        with self._collective() as distributed:
            distributed.all_gather_object(values, value, group=self.process_group)
        return values

    def scatter(self, items: Sequence[_T], batch_size: int) -> tuple[list[_T], list[int]]:
        """This rank's share of the items of rank 0, and how many of them belong to each round of `gather`."""
        if self.size == 1:
            return list(items), [len(items)]
        share: list[_T] = []
        counts: list[int] = []
        for parts in share_rounds(self.all_gather(len(items))[0], batch_size, self.size):
            output: list[list[_T]] = [[]]
            with self._collective() as distributed:
                shares = [list(items[part.start : part.stop]) for part in parts] if self.rank == 0 else None
                distributed.scatter_object_list(output, shares, src=0, group=self.process_group)
            share += output[0]
            counts.append(len(output[0]))
        return share, counts

    def gather(self, share: list[_T]) -> list[_T]:
        """The shares of all ranks, in the order of the scattered list, on rank 0; empty on others. Called once a round."""
        if self.size == 1:
            return share
        shares: list[list[_T]] | None = [[] for _ in range(self.size)] if self.rank == 0 else None
        with self._collective() as distributed:
            distributed.gather_object(share, shares, dst=0, group=self.process_group)
        return [item for part in shares or [] for item in part]

    @contextmanager
    def _collective(self) -> Iterator[ModuleType]:
        from torch import distributed

        before = "" if self.heartbeat is None else self.heartbeat.doing
        self.set_status(WAITING)
        yield distributed
        self.set_status(before)


@contextmanager
def worker_group(timeout_s: float) -> Iterator[WorkerGroup]:
    """The ranks that torchrun or srun started, or one process; the GPU of each is torch's current device."""
    world = read_world()
    group: ProcessGroup | None = None
    if world.size > 1:
        connect(world, timeout_s=timeout_s)
        from torch import cuda, distributed

        if cuda.is_available():
            cuda.set_device(world.local_rank % cuda.device_count())  # with --gpus-per-task each has one
        group = cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=NO_TIMEOUT))
    with Heartbeat(world.rank, world.size, timeout_s, lambda line: None, START_AGAIN) as heartbeat:
        yield WorkerGroup(world.rank, world.size, process_group=group, heartbeat=heartbeat)


def contiguous_shares(samples: int, batch_size: int, size: int) -> list[range]:
    """The indices of each of `size` ranks: contiguous, whole batches but for the last, as even as possible."""
    each, more = divmod(-(-samples // batch_size), size)
    edges = [min(samples, batch_size * (rank * each + min(rank, more))) for rank in range(size + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def share_rounds(samples: int, batch_size: int, size: int) -> Iterator[list[range]]:
    """The shares of one part of a long list after the other: about ITEMS_PER_MESSAGE indices for each rank."""
    most = max(1, ITEMS_PER_MESSAGE // batch_size) * batch_size * size
    for start in range(0, samples, most):
        yield [
            range(start + part.start, start + part.stop)
            for part in contiguous_shares(min(most, samples - start), batch_size, size)
        ]
