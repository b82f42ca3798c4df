"""Which sample is seen when: a function of (seed, epoch), the same on any number of processes and after any interruption."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from imgrec.data.batch import Indices, Request
from imgrec.errors import ConfigError

Order = Callable[[int], Indices]  # epoch -> places in the split, in the order in which they are seen


def shuffled(samples: int, *, seed: int) -> Order:
    """Every place once, in an order that depends on (seed, epoch, samples) alone.

    The order sorts raw words of Philox (Salmon et al. 2011) under the key (seed, epoch): numpy guarantees the words of a bit
    generator for good, but not what `Generator.permutation` makes of them, and a run may be resumed under a newer numpy.
    """

    def order(epoch: int) -> Indices:
        key = np.array([seed % 2**64, epoch], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(samples), kind="stable").astype(np.int64, copy=False)

    return order


def sequential(samples: int) -> Order:
    """Every place once, from first to last: validation and test."""
    return lambda epoch: np.arange(samples, dtype=np.int64)


class EpochBatches(Sampler[Request]):
    """The requests of one rank for one epoch: global batch k holds the same samples on any number of devices.

    The order is cut into global batches of `batch_size` (the last one may be short), each into `devices` runs of neighbours, each
    of those into `accumulate` micro-batches; sizes differ by one at most and nothing is padded. All ranks yield equally many
    requests, or the collectives of a step would hang: where a short batch has fewer samples than devices, the last ranks get
    empty ones. A short batch has only as many micro-batches as its size needs, so none is larger than in a full one.

    `epoch` is asked, and the order drawn, when the first request is taken and not before: on a resume Lightning opens iterators
    before it has restored the epoch. `start` is (epoch, global batches of that epoch that are already done): they are left out.
    `keep_single=False` leaves out a last global batch of a single sample, as batch norm cannot train on one; shuffling gives the
    sample its turn in the next epoch. A set of one batch is always kept.
    """

    def __init__(
        self,
        *,
        samples: int,
        order: Order,
        epoch: Callable[[], int],
        batch_size: int,
        devices: int,
        rank: int,
        accumulate: int,
        keep_single: bool,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        assert samples >= 0
        assert min(batch_size, accumulate) >= 1
        assert 0 <= rank < devices
        self.samples, self.order, self.epoch, self.start = samples, order, epoch, start
        self.batch_size, self.devices, self.rank, self.accumulate = batch_size, devices, rank, accumulate
        self.micro = -(-batch_size // (devices * accumulate))  # the most that one device holds at once
        self.global_batches = global_batches(samples, batch_size, keep_single=keep_single)

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch()
        order = self.order(epoch)
        assert len(order) == self.samples
        done = self.start[1] if epoch == self.start[0] else 0
        for k in range(done, self.global_batches):
            batch = order[k * self.batch_size : (k + 1) * self.batch_size]
            mine = np.array_split(batch, self.devices)[self.rank]
            for part in np.array_split(mine, self._parts(len(batch))):
                yield Request(epoch, part, len(batch))

    def __len__(self) -> int:
        """Requests in a whole epoch, wherever `start` is: on a resume Lightning adds the batches done to its count itself."""
        if not self.global_batches:
            return 0
        last = min(self.samples, self.global_batches * self.batch_size) - (self.global_batches - 1) * self.batch_size
        return (self.global_batches - 1) * self._parts(self.batch_size) + self._parts(last)

    def _parts(self, size: int) -> int:
        """Micro-batches that a global batch of `size` samples is cut into on every rank."""
        if size == self.batch_size:
            return self.accumulate  # exactly: the trainer counts them to know when to step
        return max(1, -(-size // (self.devices * self.micro)))


def global_batches(samples: int, batch_size: int, *, keep_single: bool) -> int:
    """Global batches, so optimizer steps, in an epoch of `samples`."""
    whole, rest = divmod(samples, batch_size)
    drop = rest == 1 and whole > 0 and not keep_single
    return whole + (rest > 0 and not drop)


@dataclass(frozen=True)
class BatchPlan:
    """How the user's global batch comes about: devices x what one holds at once x micro-batches that are accumulated."""

    global_size: int
    devices: int
    per_device: int  # samples on one device at once, at most
    accumulate: int
    steps_per_epoch: int  # optimizer steps

    def __str__(self) -> str:
        exact = self.global_size == self.devices * self.per_device * self.accumulate
        devices = f"{self.devices} device{'s' if self.devices > 1 else ''}"
        return f"global batch {self.global_size} = {devices} x {'' if exact else 'at most '}{self.per_device} x {self.accumulate}"


def plan(*, batch_size: int | Literal["full"], samples: int, devices: int, max_device_batch: int) -> BatchPlan:
    """The parts of a global batch on `devices`; "full" is all `samples`: one step an epoch, true gradient descent.

    ConfigError when the number of devices does not divide the batch ("full" is cut as evenly as it goes).
    """
    size = samples if batch_size == "full" else batch_size
    if size < 1 or max_device_batch < 1:
        raise ConfigError(f"batch_size={batch_size} and max_device_batch={max_device_batch}, but both must be 1 or more.")
    if batch_size != "full" and size % devices:
        lower, upper = size // devices * devices, -(-size // devices) * devices
        fits = [n for n in range(1, devices + 1) if size % n == 0]
        near = f"batch_size={lower} or batch_size={upper}" if lower else f"batch_size={upper}"
        raise ConfigError(
            f"batch_size={size} is the global batch, and {devices} devices do not divide it. "
            f"Set {near}, or use {' or '.join(map(str, fits[-2:]))} device{'' if fits[-2:] == [1] else 's'}."
        )
    share = -(-size // devices)
    accumulate = -(-share // max_device_batch)
    return BatchPlan(
        global_size=size,
        devices=devices,
        per_device=-(-share // accumulate),
        accumulate=accumulate,
        steps_per_epoch=global_batches(samples, size, keep_single=False),
    )
