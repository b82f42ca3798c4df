"""What became of a classifier's answers after classes were added to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imgrec.analysis.intervals import share_interval
from imgrec.analysis.paired import Difference, Labels, mcnemar_exact, paired_interval
from imgrec.errors import plural


class ChangedAnswers(NamedTuple):
    """Of N images of the old classes: how many answers changed, the accuracy before and after, and from which class to which."""

    images: int
    changed: int
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]
    difference: Difference  # after minus before
    p: float  # of McNemar's exact test
    moves: list[tuple[int, int, int]]  # answer before, answer now, images; the most first


def changed_answers(true: Labels, before: Labels, after: Labels) -> ChangedAnswers:
    """true, before, after: [N], N above 0, the class of each image and both answers."""
    lost, gained = (int(((one == true) & (other != true)).sum()) for one, other in ((before, after), (after, before)))
    shares = [float((answers == true).mean()) for answers in (before, after)]
    intervals = [share_interval(int((answers == true).sum()), len(true)).tolist() for answers in (before, after)]
    differs = before != after
    pairs, counts = np.unique(np.stack([before[differs], after[differs]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ChangedAnswers(
        len(true),
        int(differs.sum()),
        shares[0],
        tuple(intervals[0]),
        shares[1],
        tuple(intervals[1]),
        paired_interval(lost, gained, len(true)),
        mcnemar_exact(lost, gained),
        [(int(pairs[0, row]), int(pairs[1, row]), int(counts[row])) for row in order],
    )


def few_images_sentence(fewest: Mapping[str, Any], *, frozen: bool) -> str:
    """What so few images leave unknown, and what helps."""
    other = "Set frozen=false optim.lr=0.001, which learns more of few, or add" if frozen else "Add"
    return (
        f"{fewest['class']} has {plural(fewest['val'], 'image')} in val and {fewest['test']:,} in test: neither the best epoch for it "
        f"nor its accuracy can be told by so few. {other} images."
    )
