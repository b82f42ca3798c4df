"""Whether one classifier is better than another on the same images, how much, and with which certainty."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special  # scipy.stats takes a second to import

from imgrec.analysis.intervals import LEVEL, Z

Labels = NDArray[np.integer[Any]]  # [N], from 0 to K - 1
_Floats = NDArray[np.float64]
DRAWN_AT_ONCE = 4_000_000  # counts that are drawn at once: 32 MB


class Difference(NamedTuple):
    """The second's share minus the first's, and its interval."""

    value: float
    low: float
    high: float


class Cells(NamedTuple):
    """The images by what both say of them: all that a comparison needs, and far fewer than the images."""

    true: Labels  # [M]
    first: Labels  # [M], what the first predicts
    second: Labels  # [M]
    counts: NDArray[np.int64]  # [M], how many images


def paired_cells(true: Labels, first: Labels, second: Labels, classes: int) -> Cells:
    """The cells of N images: their classes and both predictions, each [N]."""
    keys, counts = np.unique((true.astype(np.int64) * classes + first) * classes + second, return_counts=True)
    rest, second = np.divmod(keys, classes)
    true, first = np.divmod(rest, classes)
    return Cells(true, first, second, counts)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """p of the exact two-sided McNemar test: `first_only` images are right with the first alone, `second_only` with the second alone."""
    return min(1.0, 2 * float(special.bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def only_right(cells: Cells) -> tuple[int, int]:
    """How many images are right with the first alone, and with the second alone."""
    first, second = cells.first == cells.true, cells.second == cells.true
    return int(cells.counts[first & ~second].sum()), int(cells.counts[second & ~first].sum())


def paired_interval(first_only: int, second_only: int, count: int) -> Difference:
    """The second's accuracy minus the first's on `count` images, with the interval of Bonett and Price (2012), without drawing.

    One image is added to each kind of disagreement: the interval has a width also where they agree on all images, for which
    samples of these images would promise that they agree on all others.
    """
    total = count + 2
    gained, lost = (second_only + 1) / total, (first_only + 1) / total
    middle = gained - lost
    margin = Z * ((gained + lost - middle**2) / total) ** 0.5
    return Difference((second_only - first_only) / count, max(-1.0, middle - margin), min(1.0, middle + margin))


def accuracy_differences(cells: Cells, counts: NDArray[np.int64]) -> _Floats:
    """[B] for B samples of the cells, int [B, M]."""
    right = (cells.second == cells.true).astype(np.int64) - (cells.first == cells.true)
    return np.asarray(counts @ right / counts.sum(axis=1), dtype=np.float64)


def macro_f1_differences(cells: Cells, counts: NDArray[np.int64], classes: int) -> _Floats:
    """[B] for B samples of the cells, int [B, M]. Classes without images in a sample are left out of its mean."""
    rows = np.arange(len(cells.true))

    def summed(*labels: Labels, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """[B, K]: how many images have the class in these columns; one that has it in two counts twice."""
        columns = [(rows if where is None else rows[where], each if where is None else each[where]) for each in labels]
        row, column = (np.concatenate(part) for part in zip(*columns, strict=True))
        member = sparse.csr_array((np.ones(len(row), np.int64), (row, column)), shape=(len(rows), classes))
        return np.asarray((member.T @ counts.T).T)

    present = summed(cells.true) > 0

    def macro_f1(predicted: Labels) -> _Floats:
        hits, whole = summed(cells.true, where=predicted == cells.true), summed(cells.true, predicted)
        f1 = np.divide(2 * hits, whole, out=np.zeros(hits.shape), where=present)
        return np.asarray(f1.sum(axis=1) / present.sum(axis=1))

    return macro_f1(cells.second) - macro_f1(cells.first)


def paired_bootstrap(
    cells: Cells,
    classes: int,
    *,
    resamples: int,
    seed: int,
    watch: Callable[[int], None] = lambda more: None,
) -> tuple[Difference, Difference]:
    """Differences of accuracy and macro F1, with percentile intervals over samples of the images with replacement.

    The count of each cell in a sample is multinomial, which is the same as drawing images one by one (Efron and
    Tibshirani 1993, chapter 13). watch: called with how many more samples are drawn.
    """
    generator, images = np.random.default_rng(seed), int(cells.counts.sum())
    shares = cells.counts / images
    drawn: list[tuple[_Floats, _Floats]] = []
    step = max(1, DRAWN_AT_ONCE // len(shares))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = generator.multinomial(images, shares, size=size)
        drawn.append((accuracy_differences(cells, counts), macro_f1_differences(cells, counts, classes)))
        watch(size)
    whole = cells.counts[None]
    values = accuracy_differences(cells, whole)[0], macro_f1_differences(cells, whole, classes)[0]
    tail = (1 - LEVEL) / 2
    intervals = [np.quantile(np.concatenate(part), [tail, 1 - tail]) for part in zip(*drawn, strict=True)]
    accuracy, macro_f1 = (
        Difference(float(value), *map(float, interval)) for value, interval in zip(values, intervals, strict=True)
    )
    return accuracy, macro_f1


def seeds_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[Difference, float]:
    """The difference of the mean accuracies of two trainings, each with several seeds (one of them may have one), and its p.

    first, second: bool [seeds, N], which of N images are right; two images or more. The variance is that of the seeds, the
    same for both, plus that of the images; degrees of freedom after Satterthwaite (1946). Where only seeds vary it is
    Student's t test of the accuracies, where only images vary the paired t test of the images.
    """
    groups = (first, second)
    freedom = sum(len(group) - 1 for group in groups)
    assert freedom > 0, "one of the two has several seeds"
    accuracies = [group.mean(axis=1) for group in groups]
    by_image = second.mean(axis=0) - first.mean(axis=0)
    pooled = sum(float(((each - each.mean()) ** 2).sum()) for each in accuracies) / freedom
    of_seeds = pooled * sum(1 / len(group) for group in groups)
    of_images = float(by_image.var(ddof=1)) / len(by_image)
    value, variance = float(by_image.mean()), of_seeds + of_images
    if variance == 0:
        return Difference(value, value, value), float(value == 0)
    degrees = variance**2 / (of_seeds**2 / freedom + of_images**2 / (len(by_image) - 1))
    error = variance**0.5
    margin = float(special.stdtrit(degrees, 0.5 + LEVEL / 2)) * error
    return Difference(value, value - margin, value + margin), 2 * float(special.stdtr(degrees, -abs(value) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """p of each of several tests, so that with probability 1 - a none of the true hypotheses is among those with p <= a (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [float(value) for value in steps[np.argsort(order)]]
