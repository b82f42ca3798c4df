"""All pairs of pictures whose perceptual hashes differ in few bits, without comparing all with all."""

from collections.abc import Iterator
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.data.batch import Indices

COMPARED_AT_ONCE = 2**20  # hashes looked up, and pairs compared: some 100 MB
MOST_NEAR_PAIRS = 2**23
KEY_NS, LOOKUP_NS, PAIR_NS = 100_000, 40, 8  # what a key costs, a hash that is looked up, and a pair that is compared

Words = NDArray[np.uint64]


class TooAlike(Exception):
    """More than MOST_NEAR_PAIRS pairs: the hashes do not tell these pictures apart."""


class _Key(NamedTuple):
    """The bits that two hashes must share to be compared, and the blocks before the last of these that they must not share."""

    mask: np.uint64
    changed: list[np.uint64]


def find_near(hashes: Words, distance: int) -> tuple[Indices, NDArray[np.uint8]]:
    """Pairs [P, 2] (first < second, sorted) and their distances [P] <= distance, of hashes uint64 [N, 8], upright first.

    The distance of two pictures is the least number of bits in which the upright hash of one differs from one of the other's.
    Of K blocks of bits at least K - distance are equal in two such hashes, so those that share one of the choices of so many
    blocks are compared (pigeonhole principle; Norouzi et al., "Fast Exact Search in Hamming Space with Multi-Index Hashing",
    2014). Raises TooAlike.
    """
    count = len(hashes)
    found = [(np.empty(0, np.int64), np.empty(0, np.uint8))]
    total = 0
    for key in _keys(count, distance):
        for codes, distances in _sharing(hashes, key, distance):
            found.append((codes, distances))
            total += len(codes)
            if total > MOST_NEAR_PAIRS:
                raise TooAlike
    codes, distances = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((distances, codes))  # of a pair that is found in several orientations the closest
    codes, distances = codes[order], distances[order]
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.stack(np.divmod(codes[first], max(count, 1)), axis=1), distances[first]


def _keys(count: int, distance: int) -> Iterator[_Key]:
    """For the number of blocks that costs least; one that leaves none to share compares all pairs."""

    def cost(blocks: int) -> float:
        pairs = 8.0 * count * count / 2 ** (64 * (blocks - distance) / blocks)
        return comb(blocks, distance) * (KEY_NS + 8.0 * count * LOOKUP_NS + pairs * PAIR_NS)

    blocks = min(range(max(distance, 1), distance + 6), key=cost)
    # Every so many bits: neighbours are of like frequencies, which say less together.
    bits = [np.uint64(sum(1 << bit for bit in range(block, 64, blocks))) for block in range(blocks)]
    for shared in combinations(range(blocks), blocks - distance):
        mask = np.bitwise_or.reduce([np.uint64(0), *(bits[block] for block in shared)])
        yield _Key(mask, [bits[block] for block in range(shared[-1] if shared else 0) if block not in shared])


def _sharing(hashes: Words, key: _Key, distance: int) -> Iterator[tuple[Indices, NDArray[np.uint8]]]:
    """first * N + second and the distance of the pairs that share these bits, and no choice of blocks that comes before."""
    count = len(hashes)
    bits = max(count - 1, 1).bit_length()  # about a bucket for each hash
    upright = np.ascontiguousarray(hashes[:, 0])
    buckets = _bucket(upright, key.mask, bits)
    order = np.argsort(buckets, kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(buckets, minlength=1 << bits)))
    every = hashes.T.ravel()
    for start in range(0, len(every), COMPARED_AT_ONCE):
        asked = every[start : start + COMPARED_AT_ONCE]
        bucket = _bucket(asked, key.mask, bits)
        for rows, places in _ragged(starts[bucket], starts[bucket + 1]):
            differing = np.bitwise_count(asked[rows] ^ upright[order[places]])
            near = np.flatnonzero(differing <= distance)
            row, two, differing = rows[near], order[places[near]], differing[near]
            orientation, one = np.divmod(row + start, count)
            changes = asked[row] ^ upright[two]
            # The upright ones meet twice.
            new = (changes & key.mask == 0) & np.where(orientation == 0, one < two, one != two)
            for block in key.changed:
                new &= changes & block != 0
            one, two = one[new], two[new]
            yield np.minimum(one, two) * count + np.maximum(one, two), differing[new]


def _bucket(words: Words, mask: np.uint64, bits: int) -> Indices:
    """A number of so many bits for the masked ones (multiplicative hashing)."""
    return ((words & mask) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - bits)).astype(np.int64)


def _ragged(first: Indices, end: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Each row with each place from its first to before its end, about COMPARED_AT_ONCE at a time."""
    counts = end - first
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        before = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + COMPARED_AT_ONCE, side="right")))
        rows = np.repeat(np.arange(begin, stop), counts[begin:stop])
        shifts = first[begin:stop] - (ends[begin:stop] - counts[begin:stop] - before)
        yield rows, np.arange(len(rows)) + shifts[rows - begin]
        begin = stop
