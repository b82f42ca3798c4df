"""What images that have a copy in training are worth in a test, and splits without such."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.intervals import share_interval
from imgrec.data import counter_rng
from imgrec.data.batch import Indices
from imgrec.data.splits import hash_names


class LeakWorth(NamedTuple):
    """Accuracies with their 95% intervals; 0 of 0 images is 0, with an interval of 0 to 1."""

    leaked: int
    accuracy: float
    interval: tuple[float, float]
    clean_accuracy: float  # without the leaked images
    clean_interval: tuple[float, float]


def leak_worth(correct: NDArray[np.bool_], leaked: NDArray[np.bool_]) -> LeakWorth:
    """Accuracy with and without the leaked images: for each image of a split [N] whether it was right, and whether it is leaked."""
    every, clean = _accuracy(correct), _accuracy(correct[~leaked])
    return LeakWorth(int(leaked.sum()), *every, *clean)


def _accuracy(correct: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    low, high = share_interval(correct.sum(), len(correct)).tolist()
    return float(correct.mean()) if len(correct) else 0.0, (low, high)


def first_of_group(names: NDArray[np.bytes_], groups: Indices) -> Indices:
    """The row of the first name of each image's group [N], its own where it is in none; groups: [N], -1 for none."""
    first = np.arange(len(names))
    rows = np.flatnonzero(groups >= 0)
    order = rows[np.lexsort((names[rows], groups[rows]))]
    _, start, number = np.unique(groups[order], return_index=True, return_inverse=True)
    first[order] = order[start][number]
    return first


def unite_groups(names: NDArray[np.bytes_], groups: Indices, splits: Indices, seed: int) -> Indices:
    """The split of each image [N] if each group is in one: its images go together, all others stay where they are.

    A group is in one of the splits that it was in, each as probable as the images it has of it, by the hash of (seed, first name).
    So it does not depend on the other images. groups: [N], -1 for an image without.
    """
    rows = np.flatnonzero(groups >= 0)
    order = rows[np.lexsort((splits[rows], groups[rows]))]
    _, start, number, size = np.unique(groups[order], return_index=True, return_inverse=True, return_counts=True)
    first = first_of_group(names, groups)[order[start]]
    place = np.floor(hash_names(names[first], seed, counter_rng.TEST_SPLIT) * size).astype(np.int64)
    united = splits.copy()
    united[order] = splits[order[start + place]][number]
    return united
