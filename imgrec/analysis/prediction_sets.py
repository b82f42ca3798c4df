"""Sets of classes that hold the right one as often as asked for, and the probability from which answers may be trusted.

Both are fitted on images that the network was not trained on, and hold for images from the same source: they and the
fitted ones have to be exchangeable.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgrec.config.schema import SetMethod

FloatArray = NDArray[np.floating[Any]]
# Of RAPS, as its authors take them for ImageNet in the code of arXiv 2107.07511. Fixed: choosing them would cost images.
PENALTY = 0.01  # for each class from rank FREE_CLASSES on
FREE_CLASSES = 5
RISK_LEVEL = 0.05  # the error among the answered may exceed the risk with this probability, over the choice of validation images
APART = 4  # each sequence of tests starts at so many times the images of the one before
RISKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # one of which may be shown where a smaller one cannot


class TooFewImages(Exception):
    """For a coverage. needed, count: images; label: of the class that has so few, or None; others: further classes with too few."""

    def __init__(self, needed: int, count: int, label: int | None = None, others: int = 0) -> None:
        super().__init__(f"it takes {needed} images, and there are {count}")
        self.needed, self.count, self.label, self.others = needed, count, label, others


class RiskNotShown(Exception):
    """Its text says why; least: the least of RISKS that can be shown, None where none can."""

    def __init__(self, reason: str, least: float | None) -> None:
        super().__init__(reason)
        self.least = least


def set_scores(
    method: SetMethod,
    probability: FloatArray,
    before: FloatArray,
    rank: NDArray[np.integer[Any]],
    u: FloatArray | float,
    *,
    penalty: float = PENALTY,
    free: int = FREE_CLASSES,
) -> NDArray[np.float64]:
    """How badly a class fits an image, elementwise for arrays of one shape.

    probability: of the class; before: the sum of the probabilities of the classes ranked before it; rank: how many those
    are. u: uniform in [0, 1], one for each image: the share of its own probability that counts (not for lac). With u = 0
    for all the sets depend on no random number and are never empty, but larger; u = 1 is the plain cumulative sum.
    lac: 1 - p (Sadinle 2019). aps: before + u p (Romano 2020, arXiv 2006.02544). raps: that and a penalty for each class
    from rank `free` on (Angelopoulos 2021, arXiv 2009.14193).
    """
    p = probability.astype(np.float64)
    if method == "lac":
        return 1 - p
    scores: NDArray[np.float64] = before + u * p
    return scores if method == "aps" else scores + penalty * np.maximum(0, rank + 1 - free)


def ranked_classes(probabilities: FloatArray) -> tuple[FloatArray, NDArray[np.intp]]:
    """float [N, K] -> `before` and `rank` of each class of each image, [N, K]; of equal classes the first is ranked first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], axis=1).astype(probabilities.dtype)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(probabilities.shape[1])[None], axis=1)
    return np.take_along_axis(sums, rank, axis=1), rank


@dataclass(frozen=True)
class SetRule:
    """Which classes are in the set of an image: those whose score is at most their threshold, float64 [K]."""

    method: SetMethod
    thresholds: NDArray[np.float64]
    penalty: float = PENALTY
    free: int = FREE_CLASSES

    def sets(self, probabilities: FloatArray, u: FloatArray | float) -> NDArray[np.bool_]:
        """float [N, K], and u of [N] or one for all -> bool [N, K]."""
        if self.method == "lac":  # which needs no ranks, and the sort is most of the time
            return np.asarray(1 - probabilities.astype(np.float64) <= self.thresholds)
        before, rank = ranked_classes(probabilities)
        own = np.broadcast_to(u, len(probabilities))[:, None]
        scores = set_scores(self.method, probabilities, before, rank, own, penalty=self.penalty, free=self.free)
        return np.asarray(scores <= self.thresholds)


def fit_sets(
    scores: NDArray[np.float64], labels: NDArray[np.integer[Any]], classes: int, coverage: float, *, by_class: bool
) -> NDArray[np.float64]:
    """The thresholds [K] with which sets hold the right class of a new image with a probability of at least `coverage`.

    scores, labels: of the right class of each of N images. by_class: also among the images of each class, if it has enough
    (Vovk 2012, arXiv 1209.2673). Raises TooFewImages.
    """
    needed = images_for_coverage(coverage)
    if not by_class:
        if len(scores) < needed:
            raise TooFewImages(needed, len(scores))
        return np.full(classes, conformal_quantile(scores, coverage))
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < needed:
        fewest = int(counts.argmin())
        raise TooFewImages(needed, int(counts[fewest]), fewest, int((counts < needed).sum()) - 1)
    by_label = np.split(scores[np.argsort(labels, kind="stable")], np.cumsum(counts)[:-1])
    return np.array([conformal_quantile(own, coverage) for own in by_label])


def conformal_quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """The ceil((N + 1) coverage)-th smallest of N scores: a new one is at most that with a probability of at least `coverage`."""
    rank = conformal_rank(len(scores), coverage)
    assert rank <= len(scores), "there are images_for_coverage"
    return float(np.partition(scores, rank - 1)[rank - 1])


def conformal_rank(count: int, coverage: float) -> int:
    """ceil((count + 1) coverage) of the decimal number that was typed: of 99 and 0.55 it is 55, by floats 56."""
    return math.ceil((count + 1) * Fraction(str(coverage)))


def images_for_coverage(coverage: float) -> int:
    """The least number of images with which a coverage can be kept by less than all classes."""
    share = Fraction(str(coverage))
    return math.ceil(share / (1 - share))


def risk_threshold(probability: FloatArray, wrong: NDArray[np.bool_], risk: float) -> float:
    """t, so that of the images whose most probable class has more than t at most `risk` are wrong, with a probability of 95%.

    probability: of the most probable class of each of N images [N]; wrong: whether it is not the right one. Answers to the
    surest images alone are tested first, then to one image more each time, until the binomial test shows no error below
    `risk` (fixed sequence testing, Angelopoulos 2021, arXiv 2110.01052; the sequence is of numbers of images, not of
    thresholds, so that no test is lost where there are none). An error among the surest does not end it, for there are several
    starts, which share the level. Taken for granted: the lower the threshold, the greater the error among the answered.
    Raises RiskNotShown where no threshold holds.
    """
    threshold = _lowest_threshold(probability, wrong, risk)
    if threshold is None:
        others = (other for other in RISKS if other > risk and _lowest_threshold(probability, wrong, other) is not None)
        raise RiskNotShown(_why_none(probability, wrong, risk), next(others, None))
    return threshold


def _lowest_threshold(probability: FloatArray, wrong: NDArray[np.bool_], risk: float) -> float | None:
    """That of the most images that may be answered."""
    count, sequences = len(probability), 0
    while images_for_risk(risk, RISK_LEVEL / (sequences + 1)) * APART**sequences <= count:
        sequences += 1
    if not sequences:
        return None
    level = RISK_LEVEL / sequences
    values, answered, errors = _cuts(probability, wrong)
    starts = np.searchsorted(answered, images_for_risk(risk, level) * APART ** np.arange(sequences))
    fails = np.append(np.flatnonzero(_p_values(errors, answered, risk) > level), len(answered))
    ends = fails[np.searchsorted(fails, starts)]  # of each sequence, the first that failed
    if not (ends > starts).any():
        return None
    most = answered[ends[ends > starts].max() - 1]
    return float(values[most]) if most < count else 0.0


def _p_values(errors: NDArray[Any], answered: NDArray[np.intp], risk: float) -> NDArray[np.float64]:
    """How probable so few errors are where each answer is wrong with the probability `risk`."""
    from scipy.special import bdtr  # 0.1 s

    return np.asarray(bdtr(errors, answered, risk))


def _cuts(probability: FloatArray, wrong: NDArray[np.bool_]) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp]]:
    """The probabilities, descending; then for each threshold how many are answered and how many of those are wrong."""
    order = np.argsort(-probability, kind="stable")
    values = probability[order]
    answered = np.append(np.flatnonzero(values[1:] < values[:-1]) + 1, len(values))  # equal ones are answered together
    return values, answered, np.cumsum(wrong[order])[answered - 1]


def images_for_risk(risk: float, level: float = RISK_LEVEL) -> int:
    """The least number of images, none of them wrong, that show at this level an error below `risk`: (1 - risk)^n <= level."""
    return math.ceil(math.log(level) / math.log1p(-risk))


def _why_none(probability: FloatArray, wrong: NDArray[np.bool_], risk: float) -> str:
    least = images_for_risk(risk)
    if len(probability) < least:
        return f"it takes at least {least:,} validation images, none of them wrong, and there are {len(probability):,}."
    _, answered, errors = _cuts(probability, wrong)
    enough = answered >= least
    answered, errors = answered[enough], errors[enough]
    best = np.argmin(_p_values(errors, answered, risk))
    found = f"of the surest {answered[best]:,} of {len(probability):,} validation images {errors[best]:,} are wrong"
    larger = np.geomspace(1, 1000, 500)
    holds = _p_values(np.ceil(errors[best] * larger), (answered[best] * larger).astype(np.intp), risk) <= RISK_LEVEL
    if errors[best] >= risk * answered[best] or not holds.any():
        return f"{found}, so more of them would not help."
    return f"{found}; it would take about {len(probability) * larger[holds.argmax()]:,.0f} validation images of this kind."
