"""Random numbers without a state: (seed, epoch, sample index, stream, k) -> a number.

Every sample of every epoch has its own splitmix64 generator (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, 2014) with random access. So a draw is the same in any worker, on any rank, in any batch and on any device,
and a resumed run draws what the uninterrupted run would have. `word` defines it in Python's integers, for one sample in
a worker of the data loader; `uniform` gives the same bits for a batch on its device.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: the step of splitmix64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB

# One stream per use, so that switching one augmentation on does not change the draws of the others.
CROP_BOX, POLICY, GEOMETRY, ELASTIC, ERASE, MIX, NETWORK, TEST_SPLIT, VAL_SPLIT, CLASS_SETS = range(10)


def _finalise(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _MASK
    return x ^ (x >> 31)


def splitmix64(state: int, k: int) -> int:
    """The k-th word, from 0, of the generator with this initial state: 0 <= word < 2**64."""
    return _finalise((state + (k + 1) * _GAMMA) & _MASK)


def word(seed: int, epoch: int, index: int, stream: int, k: int) -> int:
    """The k-th 64-bit word of a sample's generator."""
    return splitmix64(splitmix64(_shared(seed, epoch, stream) + index, 0), k)


def unit(seed: int, epoch: int, index: int, stream: int, k: int) -> float:
    """The k-th uniform number in [0, 1) of a sample, as `uniform`: 24 bits, two from each word, the low half first."""
    return (word(seed, epoch, index, stream, k // 2) >> (8 + 32 * (k % 2)) & 0xFFFFFF) * 2.0**-24


@lru_cache(maxsize=64)
def _shared(seed: int, epoch: int, stream: int) -> int:
    return splitmix64(splitmix64(splitmix64(seed, 0) + epoch, 0) + stream, 0)


def uniform(seed: int, epoch: int, indices: Tensor, stream: int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) for each of `indices` (int64 [B]): float32 [B, count] on their device."""
    assert indices.dtype == torch.int64
    # What is equal for all samples is hashed in Python; only the index and the counter are hashed on the device.
    states = _finalise_(indices + _signed(_shared(seed, epoch, stream) + _GAMMA))
    steps = torch.arange(1, (count + 1) // 2 + 1, device=indices.device).mul_(_signed(_GAMMA))
    words = _finalise_(states[:, None] + steps)
    return (words.view(torch.int32)[:, :count] >> 8 & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def hash_words(seed: int, stream: int, words: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each row of words, which are given column by column, W of [N]: [N].

    Words that are 0, which stand at the end of a row, count for nothing. By numpy, whose shifts of unsigned words take half
    of the time of torch's.
    """
    state = np.full(len(words[0]), splitmix64(splitmix64(seed, 0) + stream, 0), dtype=np.uint64)
    spare = np.empty_like(state)
    whole = words[-1].all()  # then no other is 0
    for word in words:
        mixed = state ^ word
        mixed += np.uint64(_GAMMA)
        for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
            mixed ^= np.right_shift(mixed, np.uint64(shift), out=spare)
            mixed *= np.uint64(multiplier)
        mixed ^= np.right_shift(mixed, np.uint64(31), out=spare)
        state = mixed if whole or word.all() else np.where(word != 0, mixed, state)
    return np.asarray((state >> np.uint64(11)) * 2.0**-53)


def _signed(x: int) -> int:
    """The int64 with the bits of x modulo 2**64: torch's int64 overflow equals unsigned arithmetic."""
    return ((x & _MASK) ^ (1 << 63)) - (1 << 63)


def _finalise_(x: Tensor) -> Tensor:
    # int64 shifts to the right copy the sign bit; the masks remove it.
    x ^= (x >> 30).bitwise_and_((1 << 34) - 1)
    x *= _signed(_MULTIPLIER_1)
    x ^= (x >> 27).bitwise_and_((1 << 37) - 1)
    x *= _signed(_MULTIPLIER_2)
    x ^= (x >> 31).bitwise_and_((1 << 33) - 1)
    return x
