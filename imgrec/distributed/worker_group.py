"""The processes of one evaluation or prediction: whole batches for each, and what they found on the first one in the order of the list.

The batches are those of one process, since the last bits of an answer may depend on the batch that an image is in. Processes wait for one another as
long as they move: the heartbeat ends what hangs, and says why. Imports no torch where a process is alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar, cast

from imgrec.distributed.diagnosis import WAITING
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.process_group import connect
from imgrec.distributed.world import world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_T = TypeVar("_T")
ITEMS_PER_MESSAGE = 4096  # items of each process that go over the network in one message: some MB
START_AGAIN = "Start the same command again."
FOR_GOOD = timedelta(days=365)  # shares take unequally long, and the heartbeat watches


class WorkerGroup:
    """The processes of a torch.distributed group (None: the default one), or a process alone. The heartbeat is told what this one does."""

    def __init__(
        self, rank: int = 0, size: int = 1, *, process_group: "ProcessGroup | None" = None, heartbeat: Heartbeat | None = None
    ) -> None:
        self.rank, self.size, self.process_group, self.heartbeat = rank, size, process_group, heartbeat

    def do(self, what: str) -> None:
        """Say what this process is doing now."""
        if self.heartbeat is not None:
            self.heartbeat.doing = what

    def everywhere(self, mine: _T) -> list[_T]:
        """What each process gives, in the order of their ranks, on all of them."""
        if self.size == 1:
            return [mine]
        from torch import distributed

        found: list[_T] = [mine] * self.size
        with self._waiting():
            distributed.all_gather_object(found, mine, group=self.process_group)
        return found

    def deal(self, items: Sequence[_T], batch_size: int) -> tuple[list[_T], list[int]]:
        """This process' items of those that the first one has, and how many of them belong to each round of `collect`."""
        if self.size == 1:
            return list(items), [len(items)]
        from torch import distributed

        mine: list[_T] = []
        ends: list[int] = []
        for parts in share_rounds(self.everywhere(len(items))[0], batch_size, self.size):
            told: list[list[_T]] = [[]]
            with self._waiting():
                given = [list(items[part.start : part.stop]) for part in parts] if self.rank == 0 else None
                distributed.scatter_object_list(told, given, src=0, group=self.process_group)
            mine += told[0]
            ends.append(len(told[0]))
        return mine, ends

    def collect(self, mine: list[_T]) -> list[_T]:
        """The items of all processes on the first one, in the order of the list that was dealt; elsewhere nothing. A call for each round."""
        if self.size == 1:
            return mine
        from torch import distributed

        found: list[list[_T]] | None = [[] for _ in range(self.size)] if self.rank == 0 else None
        with self._waiting():
            distributed.gather_object(mine, found, dst=0, group=self.process_group)
        return [item for part in found or [] for item in part]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        before = "" if self.heartbeat is None else self.heartbeat.doing
        self.do(WAITING)
        yield
        self.do(before)


@contextmanager
def worker_group(timeout_s: float) -> Iterator[WorkerGroup]:
    """The group of the processes that torchrun or srun started, each with a GPU of its own as torch's current device; a lone process is one too."""
    here = world()
    group: ProcessGroup | None = None
    if here.size > 1:
        connect(here, timeout_s=timeout_s)
        from torch import cuda, distributed

        if cuda.is_available():
            cuda.set_device(here.local_rank % cuda.device_count())  # with --gpus-per-task each sees one
        group = cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=FOR_GOOD))
    with Heartbeat(here.rank, here.size, timeout_s, lambda line: None, START_AGAIN) as heartbeat:
        yield WorkerGroup(here.rank, here.size, process_group=group, heartbeat=heartbeat)


def contiguous_shares(samples: int, batch_size: int, size: int) -> list[range]:
    """The places of each of `size` processes: runs of neighbours, whole batches but for the last one, as evenly as it goes; some may be empty."""
    each, more = divmod(-(-samples // batch_size), size)
    edges = [min(samples, batch_size * (rank * each + min(rank, more))) for rank in range(size + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def share_rounds(samples: int, batch_size: int, size: int) -> Iterator[list[range]]:
    """The shares of one part of a long list after the other: about AT_ONCE places for each process."""
    most = max(1, ITEMS_PER_MESSAGE // batch_size) * batch_size * size
    for start in range(0, samples, most):
        yield [
            range(start + part.start, start + part.stop)
            for part in contiguous_shares(min(most, samples - start), batch_size, size)
        ]
