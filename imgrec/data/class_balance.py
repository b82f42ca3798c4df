"""How often each class is seen in training: orders that draw with replacement, each a function of (seed, epoch)."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imgrec.data.batch import Indices
from imgrec.data.sampler import Order, random_words, shuffled_order
from imgrec.errors import ConfigError, did_you_mean

Sampling = Literal["shuffle", "balanced", "sqrt", "weighted"]


def training_order(
    sampling: Sampling, class_weights: Mapping[str, float], *, labels: Indices, classes: tuple[str, ...], seed: int
) -> Order:
    """The order that conf/train.yaml's `sampling` means, for the training split's labels (int64 [N])."""
    if sampling == "shuffle":
        return shuffled_order(len(labels), seed=seed)
    return weighted_order(
        labels, class_shares(sampling, class_weights, np.bincount(labels, minlength=len(classes)), classes), seed=seed
    )


def class_shares(
    sampling: Sampling, class_weights: Mapping[str, float], counts: NDArray[np.int64], classes: tuple[str, ...]
) -> list[Fraction]:
    """Expected share of each class among the samples of an epoch; `counts`, int64 [K], are its images.

    "balanced": equal; "sqrt": by the root of the counts (Mahajan 2018, section 2.2); "weighted": by `class_weights`, 1 for a class
    that they do not name. A class without images has none. ConfigError for a name that is no class, or where nothing is left.
    """
    for name in class_weights:
        if name not in classes:
            raise ConfigError(
                f"class_weights names {name}, but there is no such class.{did_you_mean(name, classes)} "
                f"There are: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}."
            )
    weight: dict[Sampling, Sequence[float]] = {
        "shuffle": counts.tolist(),
        "balanced": [1] * len(classes),
        "sqrt": [math.sqrt(count) for count in counts.tolist()],
        "weighted": [class_weights.get(name, 1) for name in classes],
    }
    # Whole fractions: a sum of floats may differ between machines in its last digit, and with it an order.
    found = [Fraction(one) if count else Fraction(0) for one, count in zip(weight[sampling], counts, strict=True)]
    if not (total := sum(found)):
        raise ConfigError("class_weights are 0 for every class that has images. Set one above 0, or leave class_weights out.")
    return [share / total for share in found]


def weighted_order(labels: Indices, shares: list[Fraction], *, seed: int) -> Order:
    """As many samples as there are labels, with replacement: a class by its share, then one of its images, all alike.

    Two words of Philox a sample, compared and multiplied as whole numbers: the same on every machine. A share is met to 2**-64, an
    image's chance within its class to 2**-32.
    """
    samples = len(labels)
    counts = np.bincount(labels, minlength=len(shares))
    seen = [place for place, share in enumerate(shares) if share]
    assert all(counts[place] for place in seen)
    edges: list[int] = []
    below = Fraction(0)
    for place in seen[:-1]:
        below += shares[place]
        edges.append(math.floor(below * 2**64))
    bounds = np.array(edges, dtype=np.uint64)
    by_class = np.argsort(labels, kind="stable")
    first = (np.cumsum(counts) - counts)[seen]
    size = counts[seen].astype(np.uint64)

    def order(epoch: int) -> Indices:
        word = random_words(2 * samples, seed=seed, epoch=epoch)
        chosen = np.searchsorted(bounds, word[:samples], side="right")
        within = (word[samples:] >> np.uint64(32)) * size[chosen] >> np.uint64(32)
        return occurrence_codes(by_class[first[chosen] + within.astype(np.int64)], samples)

    return order


def occurrence_codes(places: Indices, samples: int) -> Indices:
    """Places with repeats -> the codes of an Order: a place, plus `samples` for each time that it came before."""
    by_place = np.argsort(places, kind="stable")
    ordered = places[by_place]
    rank = np.arange(len(places), dtype=np.int64)
    first = np.maximum.accumulate(np.where(np.diff(ordered, prepend=-1) != 0, rank, 0))  # rank of the place's first time
    before = np.empty_like(places)
    before[by_place] = rank - first
    return places + samples * before
