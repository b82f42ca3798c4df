"""Copies among images: the same pixels, or nearly the same picture; across splits, under two labels, within one class."""

from math import log10
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgrec.analysis.near_pairs import TooAlike, find_near
from imgrec.data.batch import Indices


class Duplicates(NamedTuple):
    """Copies among N images, and the pairs that show them.

    Of images with the same pixels, split and label the first stands for all, and each other one is paired with it only. So
    pairs are few, and yet each difference of split or label between copies is one of theirs.
    """

    pairs: Indices  # [P, 2], first < second, sorted
    distances: NDArray[np.uint8]  # [P], differing bits of the perceptual hashes
    same_pixels: NDArray[np.bool_]  # [P]
    across_splits: NDArray[np.bool_]  # [P]
    two_labels: NDArray[np.bool_]  # [P]
    groups: Indices  # [N], what pairs connect, numbered in the order of the images; -1: without a copy
    in_train: NDArray[np.bool_]  # [N], a leak: an image of another split that has a copy in that for training
    too_alike: bool  # so many pictures looked alike that only the same pixels count


def usual_distance(count: int) -> int:
    """At which two of `count` pictures are nearly the same: the most, up to 8, that gives about 3 false pairs.

    Of a million pairs of different photographs 0.15 are within 8 bits, and ten times fewer with each two bits less
    (benchmarks/NOTES.md). A hash has as many ones as zeros, so distances are even.
    """
    most = 8 + 2 * log10(3 / (1.5e-7 * max(count, 2) ** 2 / 2))
    return min(8, max(2, int(most // 2) * 2))


def find_duplicates(
    fingerprints: NDArray[np.uint64], labels: Indices, splits: Indices, distance: int | None = None
) -> Duplicates:
    """Copies by `fingerprint`s, uint64 [N, 10], of images with these labels [N] and splits [N], 0 for that of training.

    distance: at which two pictures are nearly the same, `usual_distance` by default. Those without a perceptual hash, of nearly
    one colour, are copies by their pixels only.
    """
    content, first = number_rows(fingerprints[:, 1], fingerprints[:, 0])
    try:
        near, distances = _near(fingerprints[first, 2:], usual_distance(len(first)) if distance is None else distance)
        too_alike = False
    except TooAlike:
        near, distances, too_alike = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.uint8), True
    member, first = number_rows(labels, splits, content)  # in the order of contents
    one, two, edge = _member_pairs(near, content[first])
    others = np.setdiff1d(np.arange(len(content)), first)
    pairs = np.concatenate([np.stack([first[one], first[two]], axis=1), np.stack([first[member[others]], others], axis=1)])
    bits = np.concatenate([np.append(distances, np.uint8(0))[edge], np.zeros(len(others), dtype=np.uint8)])
    pairs.sort(axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    one, two = pairs.T
    across = splits[one] != splits[two]
    leaked = np.zeros(len(first), dtype=bool)
    leaked[member[np.where(splits[one] == 0, two, one)[across & (splits[pairs] == 0).any(axis=1)]]] = True
    return Duplicates(
        pairs=pairs,
        distances=bits[order],
        same_pixels=content[one] == content[two],
        across_splits=across,
        two_labels=labels[one] != labels[two],
        groups=_connect(pairs, len(content)),
        in_train=leaked[member],
        too_alike=too_alike,
    )


def closest(found: Duplicates, splits: Indices, distance: int) -> Duplicates:
    """What `find_duplicates` gives at a smaller distance, without a second search. Not of pictures that are too alike."""
    kept = found.distances <= distance
    pairs, across = found.pairs[kept], found.across_splits[kept]
    same_pixels, two_labels = found.same_pixels[kept], found.two_labels[kept]
    one, two = pairs.T
    in_train = np.zeros(len(splits), dtype=bool)
    in_train[np.where(splits[one] == 0, two, one)[across & (splits[pairs] == 0).any(axis=1)]] = True
    others = same_pixels & ~across & ~two_labels  # the first of them is the one that stands in pairs
    in_train[two[others]] |= in_train[one[others]]
    return Duplicates(
        pairs, found.distances[kept], same_pixels, across, two_labels, _connect(pairs, len(splits)), in_train, found.too_alike
    )


def number_rows(*columns: NDArray[np.generic]) -> tuple[Indices, Indices]:
    """Rows numbered by their values, the last column first: the number of each [N], and the first row of each number [M]."""
    order = np.lexsort(columns)
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order[1:]] != column[order[:-1]]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers, order[new]


def _near(hashes: NDArray[np.uint64], distance: int) -> tuple[Indices, NDArray[np.uint8]]:
    """`find_near` among those that have a hash."""
    rows = np.flatnonzero(hashes[:, 0])
    pairs, distances = find_near(hashes[rows], distance)
    return rows[pairs], distances


def _member_pairs(near: Indices, contents: Indices) -> tuple[Indices, Indices, Indices]:
    """Pairs of members of near contents, and of one content: of members [M] in the order of their contents.

    Two members [P] each, and the row of `near` [P], -1 for the same content.
    """
    count = np.bincount(contents)
    start = np.cumsum(count) - count
    several = np.flatnonzero(count > 1)
    edges = np.concatenate([near, np.stack([several, several], axis=1)])
    left, right = edges.T
    number = count[left] * count[right]
    edge = np.repeat(np.arange(len(edges)), number)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number)
    one = start[left[edge]] + within // count[right[edge]]
    two = start[right[edge]] + within % count[right[edge]]
    kept = (left != right)[edge] | (one < two)
    return one[kept], two[kept], np.where(edge < len(near), edge, -1)[kept]


def _connect(pairs: Indices, count: int) -> Indices:
    """The connected component of each of `count` images by these pairs, -1 where it is alone."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    _, first, component, size = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    numbers = np.full(len(first), -1, dtype=np.int64)
    groups = np.flatnonzero(size > 1)
    numbers[groups[np.argsort(first[groups])]] = np.arange(len(groups))
    return numbers[component]


def merge_groups(*groups: Indices) -> Indices:
    """What several groupings [N] connect, each -1 for an image alone; numbered as `groups` of Duplicates."""
    return _connect(np.concatenate(list(map(_with_first, groups))), len(groups[0]))


def _with_first(groups: Indices) -> Indices:
    """Pairs [M, 2] of the first image of a group and each of the group."""
    grouped = np.flatnonzero(groups >= 0)
    first = grouped[np.unique(groups[grouped], return_index=True)[1]]
    return np.stack([first[groups[grouped]], grouped], axis=1)
