"""The order of samples: a function of (seed, epoch), equal on any number of ranks and after a resume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Literal

import numpy as np

from imgrec.config.batch_checks import check_batch_divides
from imgrec.config.schema import Limit
from imgrec.data.batch import Indices, Request
from imgrec.errors import ConfigError, plural

EVALUATION_BATCH = 256  # images per device where the training batch is smaller: no gradients, so there is room

# epoch -> the samples in their order, as in Request.indices: so the draws of a repeated sample differ
Order = Callable[[int], Indices]


def random_words(count: int, *, seed: int, epoch: int, stream: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """`count` raw words of Philox (Salmon et al. 2011) under the key (seed, epoch); those of other streams are others.

    numpy guarantees the words of a bit generator in all versions, but not the numbers of its `Generator`, and a run may
    be resumed with a newer numpy.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64)).random_raw(count)


def shuffled_order(samples: int, *, seed: int, stream: int = 0) -> Order:
    """Every index once, in an order that depends on (seed, epoch, samples) alone: sorted by one random word for each.

    The index is in the low bits of its word, so the words are sorted in place: for a million 1.5 to 10 times as fast as argsort, by the machine.
    """
    low = np.uint64((1 << max(samples - 1, 1).bit_length()) - 1)

    def order(epoch: int) -> Indices:
        keys = random_words(samples, seed=seed, epoch=epoch, stream=stream)
        keys &= ~low
        keys |= np.arange(samples, dtype=np.uint64)
        keys.sort()
        keys &= low
        return keys.view(np.int64)

    return order


BatchParts = list[list[slice]]  # [device][micro-batch]: slices of a global batch


def split_batch(size: int, *, devices: int, parts: int, pairs: bool = False, singles: bool = True) -> BatchParts:
    """A global batch of `size`, split evenly; the first devices and parts have the larger slices, the last may be empty.

    pairs: slices start at even rows, and the last three samples of an odd batch stay together. singles: False allows
    slices of one sample only where size is 1, so fewer devices and parts have any.
    """
    # Samples that stay together are a unit: a pair (three samples at the end of an odd batch), or a single sample.
    units, unit = (max(1, size // 2), 2) if pairs else (size, 1)
    least = 1 if pairs or singles else 2  # units in a slice
    used = min(devices, max(1, units // least))
    batch = []
    for first, last in _split_range(0, units, used):
        ranges = _split_range(first, last, min(parts, max(1, (last - first) // least)))
        slices = [slice(a * unit, size if b == units else b * unit) for a, b in ranges]
        batch.append(slices + [slice(0, 0)] * (parts - len(slices)))
    return batch + [[slice(0, 0)] * parts] * (devices - used)


def split_last_batch(size: int, *, full: BatchParts, pairs: bool, singles: bool, most: float) -> BatchParts:
    """A short last batch, in the fewest micro-batches in which no slice is larger than those of a `full` batch.

    singles: False avoids slices of a single sample, unless a full batch has them too. So a device may get 3 samples
    where it has 2 of a full batch; where that is more than `most`, single samples remain.
    """
    devices, accumulate, micro = len(full), len(full[0]), largest_part(full)
    limit = micro if singles or micro != 2 else min(3, most)
    for single in [True] if singles or micro == 1 else [False, True]:
        for parts in range(1, accumulate + 1):
            batch = split_batch(size, devices=devices, parts=parts, pairs=pairs, singles=single)
            if largest_part(batch) <= limit:
                return batch
    raise AssertionError("a short batch fits into the parts of a full one")


def largest_part(batch: BatchParts) -> int:
    """Samples in the largest slice."""
    return max(int(part.stop) - int(part.start) for parts in batch for part in parts)


def _split_range(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """[first, last) in `parts` consecutive ranges, the longer ones first, as in np.array_split."""
    each, more = divmod(last - first, parts)
    return list(pairwise(first + k * each + min(k, more) for k in range(parts + 1)))


@dataclass(frozen=True)
class BatchPlan:
    """How the global batches of an epoch are computed: devices x samples on a device at once x accumulated micro-batches."""

    samples: int
    global_size: int
    full: BatchParts
    last: BatchParts  # of the last global batch, which may be short
    steps_per_epoch: int  # global batches, and so optimizer steps

    def limited(self, limit: Limit) -> "BatchPlan":
        """Of a shorter epoch: a number of its global batches, or a share of them, one at least."""
        steps = min(limit, self.steps_per_epoch) if isinstance(limit, int) else max(1, int(limit * self.steps_per_epoch))
        return self if steps == self.steps_per_epoch else replace(self, last=self.full, steps_per_epoch=steps)

    @property
    def devices(self) -> int:
        return len(self.full)

    @property
    def accumulate(self) -> int:
        return len(self.full[0])

    @property
    def per_device(self) -> int:
        """Most samples on a device at once."""
        return max(largest_part(self.full), largest_part(self.last))

    @property
    def has_single(self) -> bool:
        """Whether a device has a single sample at once."""
        return any(part.stop - part.start == 1 for parts in (*self.full, *self.last) for part in parts)

    def __str__(self) -> str:
        exact = self.global_size == self.devices * self.per_device * self.accumulate
        most = f"{'' if exact else 'at most '}{self.per_device}"
        return f"global batch {self.global_size} = {plural(self.devices, 'device')} x {most} x {self.accumulate}"


def split_epoch(
    samples: int, size: int, *, devices: int, accumulate: int = 1, pairs: bool = False, singles: bool = True, most: float = inf
) -> BatchPlan:
    """The plan of an epoch with global batches of `size`; see `split_batch` and `split_last_batch`.

    singles: False for batch norm, which cannot train on a single sample: a last global batch of one is left out, unless
    it is the only one.
    """
    whole, rest = divmod(samples, size)
    full = split_batch(size, devices=devices, parts=accumulate, pairs=pairs)
    if rest > 1 or (rest == 1 and (singles or not whole)):
        last = split_last_batch(rest, full=full, pairs=pairs, singles=singles, most=most)
        return BatchPlan(samples, size, full, last, whole + 1)
    return BatchPlan(samples, size, full, full, whole)


def plan_batches(
    *, batch_size: int | Literal["full"], samples: int, devices: int, max_device_batch: int, pairs: bool = False
) -> BatchPlan:
    """The parts of a global batch on `devices`; "full" is all `samples`: gradient descent with one step in each epoch.

    ConfigError where the number of devices does not divide the batch (except "full", which is split evenly), or where
    max_device_batch is too small for partners of mixup (`pairs`).
    """
    size = samples if batch_size == "full" else batch_size
    check_batch_divides(batch_size, devices)
    share, most = -(-size // devices), max_device_batch
    if pairs:
        together = max([2 + count % 2 for count in (size, samples % size) if count > 1], default=1)
        if together > most:
            odd = "" if together == 2 else " (three images at the end of an odd batch)"
            raise ConfigError(
                f"max_device_batch={most}: augment.mixup and augment.cutmix need the two images of a pair{odd} on one device. "
                f"Set max_device_batch={together} or more, or augment.mixup=0 augment.cutmix=0."
            )
        share, most = -(-max(1, size // 2) // devices), max(1, most // 2)
    accumulate = -(-share // most)
    while largest_part(split_batch(size, devices=devices, parts=accumulate, pairs=pairs)) > max_device_batch:
        accumulate += 1
    return split_epoch(samples, size, devices=devices, accumulate=accumulate, pairs=pairs, singles=False, most=max_device_batch)


class EpochBatches:
    """The requests of one rank for one epoch. Global batch k has the same samples on any number of devices.

    The order is split as `plan` says, without padding; see mixup.py for pairs. All ranks yield equally many requests, or
    the collectives of a step would hang: a short batch may have empty ones for the last ranks.

    epoch: called when the first request is taken: on resume Lightning opens iterators before it has restored the epoch.
    start: (epoch, number of its global batches that are done and are skipped). side: of its images, called likewise.
    """

    def __init__(
        self,
        plan: BatchPlan,
        order: Order,
        *,
        epoch: Callable[[], int],
        rank: int,
        start: tuple[int, int] = (0, 0),
        side: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.plan, self.order, self.epoch, self.start, self.side = plan, order, epoch, start, side
        self._full, self._last = plan.full[rank], plan.last[rank]

    def __iter__(self) -> Iterator[Request]:
        epoch, side = self.epoch(), self.side()
        order = self.order(epoch)
        assert len(order) == self.plan.samples
        size, steps = self.plan.global_size, self.plan.steps_per_epoch
        for k in range(self.start[1] if epoch == self.start[0] else 0, steps):
            batch = order[k * size : (k + 1) * size]
            for part in self._last if k == steps - 1 else self._full:
                yield Request(epoch, batch[part], len(batch), side)

    def __len__(self) -> int:
        """Requests of the whole epoch, whatever `start` is: on resume Lightning counts the done batches itself."""
        return (self.plan.steps_per_epoch - 1) * len(self._full) + len(self._last)
