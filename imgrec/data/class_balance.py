"""How often each class is seen in training: orders drawn with replacement, functions of (seed, epoch)."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from imgrec.config.schema import Sampling
from imgrec.data.batch import Indices
from imgrec.data.sampler import Order, random_words, shuffled_order
from imgrec.errors import ConfigError, did_you_mean, first_names
from imgrec.files import composed


def training_order(
    sampling: Sampling, class_weights: Mapping[str, float], labels: Indices, classes: tuple[str, ...], *, seed: int
) -> Order:
    """The order for a value of `sampling` in conf/train.yaml; labels: int64 [N], of the training split."""
    if sampling == "shuffle":
        return shuffled_order(len(labels), seed=seed)
    counts = np.bincount(labels, minlength=len(classes))
    return weighted_order(labels, class_shares(sampling, class_weights, counts, classes), seed=seed)


def class_shares(
    sampling: Sampling, class_weights: Mapping[str, float], counts: NDArray[np.int64], classes: tuple[str, ...]
) -> list[Fraction]:
    """Expected share of each class among the samples of an epoch; counts: int64 [K], images of each class.

    "balanced": equal; "sqrt": proportional to the root of the counts (Mahajan 2018, section 2.2); "weighted":
    proportional to `class_weights`, by default 1. A class without images has 0. ConfigError for an unknown class, or
    where all shares are 0.
    """
    class_weights = {composed(name): weight for name, weight in class_weights.items()}
    for name in class_weights:
        if name not in classes:
            raise ConfigError(
                f"class_weights.{name}: unknown class.{did_you_mean(name, classes)} The classes are {first_names(classes, 10)}."
            )
    weight: Mapping[str, Sequence[float]] = {
        "balanced": [1] * len(classes),
        "sqrt": [math.sqrt(count) for count in counts.tolist()],
        "weighted": [class_weights.get(name, 1) for name in classes],
    }
    # Exact fractions: the last digit of a sum of floats may differ between machines, and with it the order.
    weights = [Fraction(value) if count else Fraction(0) for value, count in zip(weight[sampling], counts, strict=True)]
    if not (total := sum(weights)):
        raise ConfigError("class_weights are 0 for every class with images. Set one above 0, or remove class_weights.")
    return [value / total for value in weights]


def weighted_order(labels: Indices, shares: list[Fraction], *, seed: int) -> Order:
    """As many samples as labels, with replacement: a class drawn by its share, then one of its images, drawn uniformly.

    Each sample takes two words of Philox in integer arithmetic, equal on every machine. Shares are exact to 2**-64, the
    probability of an image in its class to 2**-32.
    """
    samples = len(labels)
    counts = np.bincount(labels, minlength=len(shares))
    drawn = [label for label, share in enumerate(shares) if share]
    assert all(counts[label] for label in drawn)
    cumulated = accumulate(shares[label] for label in drawn[:-1])
    bounds = np.array([math.floor(share * 2**64) for share in cumulated], dtype=np.uint64)
    by_class = np.argsort(labels, kind="stable")
    first = (np.cumsum(counts) - counts)[drawn]
    size = counts[drawn].astype(np.uint64)

    def order(epoch: int) -> Indices:
        words = random_words(2 * samples, seed=seed, epoch=epoch)
        label = np.searchsorted(bounds, words[:samples], side="right")
        within = (words[samples:] >> np.uint64(32)) * size[label] >> np.uint64(32)
        return count_occurrences(by_class[first[label] + within.astype(np.int64)], samples)

    return order


def count_occurrences(indices: Indices, samples: int) -> Indices:
    """Indices with repeats -> those of an `Order`: an index, plus `samples` for each earlier occurrence."""
    by_index = np.argsort(indices, kind="stable")
    ordered = indices[by_index]
    rank = np.arange(len(indices), dtype=np.int64)
    first = np.maximum.accumulate(np.where(np.diff(ordered, prepend=-1) != 0, rank, 0))  # rank of the first occurrence
    earlier = np.empty_like(indices)
    earlier[by_index] = rank - first
    return indices + samples * earlier
