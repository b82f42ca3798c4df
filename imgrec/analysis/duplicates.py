"""Copies among images: the same pixels, or nearly the same picture; across splits, under two labels, within one class."""

from math import log10
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgrec.analysis.near_pairs import MOST_NEAR_PAIRS, TooAlike, find_near
from imgrec.data.batch import Indices

# Pairs of members of two contents, each of which may be in every class: of more than these some are left out that say nothing new.
MOST_PAIRS_OF_EDGE = 1000


class Duplicates(NamedTuple):
    """Copies among N images, and the pairs that show them.

    Of images with the same pixels, split and label the first stands for all, and each other one is paired with it only. Of a
    picture in hundreds of classes each copy has a few pairs. So pairs are few, and yet an image that has a copy in a split, or
    under another label, has a pair that says so.
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
    content, first_of_content = number_rows(fingerprints[:, 1], fingerprints[:, 0])
    member, first = number_rows(labels, splits, content)  # in the order of contents
    members = content[first], labels[first], splits[first]
    distance = usual_distance(len(first_of_content)) if distance is None else distance
    try:
        near, distances = _near(fingerprints[first_of_content, 2:], distance)
        one, two, edge = _member_pairs(near, *members)
        too_alike = False
    except TooAlike:
        near, distances, too_alike = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.uint8), True
        one, two, edge = _member_pairs(near, *members)
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


def _member_pairs(near: Indices, contents: Indices, labels: Indices, splits: Indices) -> tuple[Indices, Indices, Indices]:
    """Pairs of members of near contents, and of one content: of members [M], each once, in the order of contents, splits and labels.

    Two members [P] each, and the row of `near` [P], -1 for the same content; of two contents with many members `_some_pairs`.
    Raises TooAlike.
    """
    count = np.bincount(contents)
    start = np.cumsum(count) - count
    several = np.flatnonzero(count > 1)
    edges = np.concatenate([near, np.stack([several, several], axis=1)])
    number = count[edges].prod(axis=1)
    many = number > MOST_PAIRS_OF_EDGE
    if np.where(many, count[edges].sum(axis=1), number)[: len(near)].sum() > MOST_NEAR_PAIRS:
        raise TooAlike
    number[many] = 0
    edge = np.repeat(np.arange(len(edges)), number)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number)
    left, right = edges[edge].T
    every = (start[left] + within // count[right], start[right] + within % count[right], edge)
    some = _some_pairs(edges[many], np.flatnonzero(many), contents, labels, splits)
    one, two, edge = (np.concatenate(parts) for parts in zip(every, some, strict=True))
    kept = one < two
    return one[kept], two[kept], np.where(edge < len(near), edge, -1)[kept]


def _some_pairs(
    edges: Indices, numbers: Indices, contents: Indices, labels: Indices, splits: Indices
) -> tuple[Indices, Indices, Indices]:
    """Pairs of `_member_pairs` for the edges [E, 2] with these numbers [E], a few for each member.

    Each member of a content is paired with the first and the last that the other content has in each split, which differ in
    label where any two there do, and with the one of its own split and label. So what a member's copies show its pairs show.
    """
    split_count, label_count = int(splits.max(initial=0)) + 1, int(labels.max(initial=0)) + 1
    place = contents * split_count + splits
    code = place * label_count + labels
    found = [np.empty((3, 0), dtype=np.int64)]
    for here, there in (edges.T, edges.T[::-1]):
        begin, size = np.searchsorted(contents, here), np.bincount(contents)[here]
        edge = np.repeat(np.arange(len(edges)), size)
        member = np.arange(len(edge)) + np.repeat(begin - (np.cumsum(size) - size), size)
        alike = (there[edge] * split_count + splits[member]) * label_count + labels[member]
        place_alike = np.searchsorted(code, alike).clip(max=len(code) - 1)
        partners = [np.where(code[place_alike] == alike, place_alike, member)]  # itself: none
        for split in range(split_count):
            wanted = there[edge] * split_count + split
            first, last = np.searchsorted(place, wanted), np.searchsorted(place, wanted, side="right") - 1
            partners += [np.where(first <= last, end, member) for end in (first, last)]
        found += [np.stack([np.minimum(member, other), np.maximum(member, other), numbers[edge]]) for other in partners]
    one, two, edge = np.unique(np.concatenate(found, axis=1), axis=1)
    return one, two, edge


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
