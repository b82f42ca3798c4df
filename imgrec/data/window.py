"""An order of samples that reads a few shards at a time: what is remote is downloaded once, and a bounded cache holds it."""

import numpy as np
from numpy.typing import NDArray

from imgrec.data.batch import Indices
from imgrec.data.sampler import Order, random_words, shuffled_order

SHARDS, SAMPLES = 1, 2  # streams of random words, beside those of `order`


def windowed_order(order: Order, shards: NDArray[np.integer], window: int, *, seed: int) -> Order:
    """The samples of `order`, drawn from `window` shards at any time: a function of (seed, epoch) too. shards: [N], of each index.

    In each epoch the P shards stand in a random order on a circle of length P, and each sample at a random place of the
    `window` that follows its shard. So the begin and the end of the epoch are mixed as its middle is, and with
    `window` >= P it is a shuffle. Integers only: the same order on every machine.
    """
    present, shard = np.unique(shards, return_inverse=True)
    count = len(present)
    low = max(len(shard) - 1, 1).bit_length()  # bits for the row of a sample in `order`, so that the sort is stable and in place
    fraction = min(32, 63 - low - count.bit_length())  # bits for a place between two shards
    shuffled = shuffled_order(count, seed=seed, stream=SHARDS)

    def windowed(epoch: int) -> Indices:
        samples = order(epoch)
        start = np.empty(count, dtype=np.int64)
        start[shuffled(epoch)] = np.arange(count, dtype=np.int64) << fraction
        words = random_words(len(samples), seed=seed, epoch=epoch, stream=SAMPLES) >> np.uint64(64 - fraction)
        place = words.view(np.int64)
        place *= min(window, count)
        place += start[shard[samples % len(shard)]]
        place %= count << fraction
        place <<= low
        place |= np.arange(len(samples), dtype=np.int64)
        place.sort()
        place &= (1 << low) - 1
        return samples[place]

    return windowed
