"""Batches from a loader's worker processes to the main one, through memory that is used again."""

import os
import weakref
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils.data import get_worker_info

MOST_BLOCKS = 16  # of a worker that are used again; DataLoader keeps two batches of it, more are those that a user holds
ALIGNMENT = 64  # bytes


class Place(NamedTuple):
    """Where a tensor of a batch is."""

    field: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # images are channels_last, and stay it
    offset: int


class SharedBatch(NamedTuple):
    """A batch on its way; a tuple, so that DataLoader can pin its memory."""

    batch: tuple[Any, ...]  # with None for each tensor
    memory: Tensor  # uint8 [bytes], the tensors one after the other
    places: tuple[Place, ...]
    block: tuple[int, int] | None  # worker and number; None: memory that is not used again


class SharedBatches:
    """Of one loader: `share` is called in its workers, `receive` in the main process.

    torch would take fresh memory from /dev/shm for each tensor, of which a container has 64 MB. A memfd has no other limit
    than the memory. A worker writes into a block again once the main process has dropped all tensors of the batch there: the
    kernel need not fill its pages with zeros anew, which took 112 of 121 us for an image of 224x224 (2-core EPYC).
    """

    def __init__(self, workers: int) -> None:
        # Set by the worker, cleared by the main process. A tensor that a validation makes in inference mode is not written after it.
        with torch.inference_mode(False):
            in_use = memfd_tensor(workers * MOST_BLOCKS).zero_().view(workers, MOST_BLOCKS) if workers and can_share() else None
        self._in_use, self._process = in_use, os.getpid()
        self._blocks: dict[int, Tensor] = {}  # of this worker

    def share(self, batch: Any) -> Any:
        """What a worker hands over for a batch, a tuple; in the main process, and for an error, the batch itself."""
        worker = get_worker_info()
        if worker is None or self._in_use is None or not isinstance(batch, tuple):
            return batch
        places, size = [], 0
        for field, value in enumerate(batch):
            if isinstance(value, Tensor):
                strides = torch.empty_like(value, device="meta").stride()
                places.append(Place(field, value.dtype, tuple(value.shape), strides, size))
                size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        memory, block = self._free_block(worker.id, size)
        for place in places:
            _tensor(memory, place).copy_(batch[place.field])
        kind: Any = type(batch)
        rest = kind(*(None if isinstance(value, Tensor) else value for value in batch))
        return SharedBatch(rest, memory, tuple(places), block)

    def _free_block(self, worker: int, size: int) -> tuple[Tensor, tuple[int, int] | None]:
        assert self._in_use is not None
        number = next((k for k, in_use in enumerate(self._in_use[worker].tolist()) if not in_use), None)
        if number is None:
            return memfd_tensor(size), None
        if number not in self._blocks or len(self._blocks[number]) < size:
            self._blocks[number] = memfd_tensor(size)
        self._in_use[worker, number] = 1
        return self._blocks[number], (worker, number)

    def receive(self, shared: Any) -> Any:
        """The batch, its tensors in the worker's memory, which is theirs until they and all of their views are gone."""
        if not isinstance(shared, SharedBatch):
            return shared
        if shared.block is not None:
            weakref.finalize(shared.memory.untyped_storage(), self._release, *shared.block).atexit = False
        values = list(shared.batch)
        for place in map(Place._make, shared.places):  # pinning memory makes a list of a tuple
            values[place.field] = _tensor(shared.memory, place)
        return type(shared.batch)(*values)

    def _release(self, worker: int, number: int) -> None:
        assert self._in_use is not None
        if os.getpid() == self._process:  # a fork, such as a worker of another loader, drops copies
            self._in_use[worker, number] = 0


def can_share() -> bool:
    """Whether the system has memfd: Linux."""
    return hasattr(os, "memfd_create")


def memfd_tensor(size: int) -> Tensor:
    """uint8 [size] in new memory that torch can hand to another process."""
    file = os.memfd_create("imgrec")
    try:
        os.ftruncate(file, max(1, size))
        # What torch calls on the other side; it duplicates the file descriptor.
        storage: UntypedStorage = UntypedStorage._new_shared_fd_cpu(file, max(1, size))  # type: ignore[attr-defined]
    finally:
        os.close(file)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))


def _tensor(memory: Tensor, place: Place) -> Tensor:
    size = prod(place.shape) * place.dtype.itemsize
    return memory[place.offset : place.offset + size].view(place.dtype).as_strided(place.shape, place.strides)
