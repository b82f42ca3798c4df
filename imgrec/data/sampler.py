"""Which sample is seen when: a function of (seed, epoch), the same on any number of processes and after any interruption."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from imgrec.config.checks import check_batch_divides
from imgrec.data.batch import Indices, Request
from imgrec.errors import ConfigError

EVALUATION_BATCH = 256  # images per device where the training batch is smaller: no gradients, so there is room

# epoch -> codes of the samples in the order in which they are seen: a sample's place in the split, plus `samples` for each time
# that the epoch has had it before. So what is drawn for a sample follows from its code also where it comes again.
Order = Callable[[int], Indices]


def random_words(count: int, *, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """`count` raw words of Philox (Salmon et al. 2011) under the key (seed, epoch).

    numpy guarantees the words of a bit generator for good, but not what its `Generator` makes of them, and a run may be resumed
    under a newer numpy.
    """
    return np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(count)


def shuffled_order(samples: int, *, seed: int) -> Order:
    """Every place once, in an order that depends on (seed, epoch, samples) alone: the places sorted by a random word each.

    The place stands in the low bits of its word, so the words themselves are sorted: ten times faster than argsort for a million.
    """
    low = np.uint64((1 << max(samples - 1, 1).bit_length()) - 1)

    def order(epoch: int) -> Indices:
        keys = random_words(samples, seed=seed, epoch=epoch)
        keys &= ~low
        keys |= np.arange(samples, dtype=np.uint64)
        keys.sort()
        keys &= low
        return keys.view(np.int64)

    return order


def sequential_order(samples: int) -> Order:
    """Every place once, from first to last: validation and test."""
    return lambda epoch: np.arange(samples, dtype=np.int64)


class EpochBatches(Sampler[Request]):
    """The requests of one rank for one epoch: global batch k holds the same samples on any number of devices.

    The order is cut into global batches of `batch_size` (the last one may be short), each into `devices` runs of neighbours, each
    of those into `accumulate` micro-batches; nothing is padded. Without `pairs`, the parts of a full batch differ by one at most.
    With `pairs` every cut is at an even place of the global batch, and the last three of an odd one stay together: the partners of
    mixup (see mixing.py) are never parted. All ranks yield equally many requests, or the collectives of a step would hang: where a
    short batch has too few samples for all devices, the last ranks get empty ones. A short batch has only as many micro-batches as
    its size needs.

    `epoch` is asked, and the order drawn, when the first request is taken and not before: on a resume Lightning opens iterators
    before it has restored the epoch. `start` is (epoch, global batches of that epoch that are already done): they are left out.

    `keep_single=False` is for batch norm, which cannot train on a single sample: no part of a short batch is one (see `cut_short`),
    and a last global batch of one sample is left out; shuffling gives it its turn in the next epoch. A set of one batch is kept.
    `most`: what a device may hold at once, `BatchPlan.per_device`.
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
        pairs: bool = False,
        most: float = inf,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        assert samples >= 0
        assert min(batch_size, accumulate) >= 1
        assert 0 <= rank < devices
        self.samples, self.order, self.epoch, self.start = samples, order, epoch, start
        self.batch_size, self.devices, self.rank, self.accumulate = batch_size, devices, rank, accumulate
        self.global_batches = global_batches(samples, batch_size, keep_single=keep_single)
        full = cut(batch_size, devices=devices, parts=accumulate, pairs=pairs)
        self._full = self._last = full[rank]
        last = min(samples, self.global_batches * batch_size) - (self.global_batches - 1) * batch_size
        if 0 < last < batch_size:
            self._last = cut_short(last, full=full, pairs=pairs, singles=keep_single, most=most)[rank]

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch()
        order = self.order(epoch)
        assert len(order) == self.samples
        done = self.start[1] if epoch == self.start[0] else 0
        for k in range(done, self.global_batches):
            batch = order[k * self.batch_size : (k + 1) * self.batch_size]
            for part in self._last if k == self.global_batches - 1 else self._full:
                yield Request(epoch, batch[part], len(batch))

    def __len__(self) -> int:
        """Requests in a whole epoch, wherever `start` is: on a resume Lightning adds the batches done to its count itself."""
        return (self.global_batches - 1) * len(self._full) + len(self._last) if self.global_batches else 0


Cut = list[list[slice]]  # [device][micro-batch]: runs of neighbours in a global batch


def cut(size: int, *, devices: int, parts: int, pairs: bool = False, singles: bool = True) -> Cut:
    """A global batch of `size` as evenly as it goes; the first devices and parts have the larger runs, the last may be empty.

    pairs: at even places only, and the last three of an odd size stay together. singles=False: a run of one only where size is 1,
    so fewer devices and parts have any.
    """
    # What stays together is a unit: two samples, or three at the end of an odd batch; or a sample of its own.
    units, unit = (max(1, size // 2), 2) if pairs else (size, 1)
    least = 1 if pairs or singles else 2  # units in a run
    used = min(devices, max(1, units // least))
    found = []
    for first, last in _even(0, units, used):
        runs = _even(first, last, min(parts, max(1, (last - first) // least)))
        spans = [slice(a * unit, size if b == units else b * unit) for a, b in runs]
        found.append(spans + [slice(0, 0)] * (parts - len(spans)))
    return found + [[slice(0, 0)] * parts] * (devices - used)


def cut_short(size: int, *, full: Cut, pairs: bool, singles: bool, most: float) -> Cut:
    """The cut of a short last batch, in no more parts than it needs for none to be larger than those of a `full` one.

    singles=False: no run is a single sample, unless those of a full batch are too. So a device may get 3 samples where a full batch
    has 2 for it; where that is more than `most`, single samples remain.
    """
    devices, accumulate, micro = len(full), len(full[0]), largest(full)
    limit = micro if singles or micro != 2 else min(3, most)
    for single in [True] if singles or micro == 1 else [False, True]:
        for parts in range(1, accumulate + 1):
            found = cut(size, devices=devices, parts=parts, pairs=pairs, singles=single)
            if largest(found) <= limit:
                return found
    raise AssertionError("plan() knows the parts of a short batch")


def largest(found: Cut) -> int:
    """Samples in the largest run."""
    return max(int(run.stop) - int(run.start) for runs in found for run in runs)


def _even(first: int, last: int, ways: int) -> list[tuple[int, int]]:
    """[first, last) in `ways` runs of neighbours, the longer ones first, as np.array_split has them."""
    each, more = divmod(last - first, ways)
    edges = [first + k * each + min(k, more) for k in range(ways + 1)]
    return list(pairwise(edges))


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
    per_device: int  # samples on one device at once, at most, in a short last batch too
    accumulate: int
    steps_per_epoch: int  # optimizer steps
    pairs: bool = False  # partners of mixup are never parted

    def __str__(self) -> str:
        exact = self.global_size == self.devices * self.per_device * self.accumulate
        devices = f"{self.devices} device{'s' if self.devices > 1 else ''}"
        return f"global batch {self.global_size} = {devices} x {'' if exact else 'at most '}{self.per_device} x {self.accumulate}"


def plan_batches(
    *, batch_size: int | Literal["full"], samples: int, devices: int, max_device_batch: int, pairs: bool = False
) -> BatchPlan:
    """The parts of a global batch on `devices`; "full" is all `samples`: one step an epoch, true gradient descent.

    ConfigError when the number of devices does not divide the batch ("full" is cut as evenly as it goes), or where a device may
    not hold the partners of mixup at once (`pairs`).
    """
    size = samples if batch_size == "full" else batch_size
    if size < 1 or max_device_batch < 1:
        raise ConfigError(f"batch_size={batch_size} and max_device_batch={max_device_batch}, but both must be 1 or more.")
    check_batch_divides(batch_size, devices)
    steps = global_batches(samples, size, keep_single=False)
    last = min(samples, steps * size) - (steps - 1) * size if steps else size
    share, most = -(-size // devices), max_device_batch
    if pairs:
        together = max([2 + one % 2 for one in (size, last) if one > 1], default=1)
        if together > most:
            odd = "" if together == 2 else " (three at the end of a batch of odd size)"
            raise ConfigError(
                f"max_device_batch={most}, but augment.mixup and augment.cutmix need the images of a pair{odd} on one device. "
                f"Set max_device_batch={together} or more, or augment.mixup=0 augment.cutmix=0."
            )
        share, most = -(-max(1, size // 2) // devices), max(1, most // 2)
    accumulate = -(-share // most)
    while largest(full := cut(size, devices=devices, parts=accumulate, pairs=pairs)) > max_device_batch:
        accumulate += 1
    per_device = largest(full)
    if last < size:
        per_device = max(per_device, largest(cut_short(last, full=full, pairs=pairs, singles=False, most=max_device_batch)))
    return BatchPlan(size, devices, per_device, accumulate, steps, pairs)
