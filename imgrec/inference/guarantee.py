"""What the validation images of a checkpoint guarantee of its predictions: sets with a coverage, or answers with a risk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imgrec.analysis.prediction_sets import (
    FloatArray,
    RiskNotShown,
    SetRule,
    TooFewImages,
    fit_sets,
    risk_threshold,
    set_scores,
)
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.config.annotations import check_type
from imgrec.config.answers import check_answers
from imgrec.config.ranges import check_range
from imgrec.config.schema import SetMethod, Views
from imgrec.data.counter_rng import CLASS_SETS, hash_words
from imgrec.errors import CheckpointError, ConfigError, plural, shorten
from imgrec.inference.checkpoint import Checkpoint


@dataclass(frozen=True)
class Guarantee:
    """One of the two, the other is None."""

    rule: SetRule | None
    threshold: float | None  # answered are images whose most probable class has more than that

    def promised(self, probabilities: FloatArray) -> NDArray[np.bool_]:
        """float [B, K] -> which classes are in the set of each image, bool [B, K], by a rule of sets=lac; or whether it is answered, bool [B]."""
        return self.distances(probabilities) > 0 if self.rule is None else self.rule.sets(probabilities, 0.0)

    def distances(self, probabilities: FloatArray) -> NDArray[np.float64]:
        """How far probabilities are above the least that `promised` takes, in its shape."""
        exact = probabilities.astype(np.float64)
        if self.threshold is not None:
            return np.asarray(exact.max(axis=1) - self.threshold)
        assert self.rule is not None
        return np.asarray(self.rule.thresholds - (1 - exact))

    def class_sets(self, images: Tensor, probabilities: Tensor) -> list[list[int]]:
        """uint8 [B, C, S, S], float32 [B, K] -> the labels in each set, the most probable first.

        The random number of an image comes from its pixels: it is the same in each run, in any batch and on any rank.
        """
        assert self.rule is not None
        chances = probabilities.numpy()
        inside = self.rule.sets(chances, 0.0 if self.rule.method == "lac" else _numbers(_pixel_words(images)))
        order = np.argsort(-chances, axis=1, kind="stable")
        ranked = np.take_along_axis(inside, order, axis=1)
        return [labels[own].tolist() for labels, own in zip(order, ranked, strict=True)]


def find_guarantee(
    checkpoint: Checkpoint,
    *,
    coverage: float | None,
    risk: float | None,
    sets: SetMethod,
    sets_by_class: bool,
    calibrated: bool,
    tta: Views | None,
) -> Guarantee | None:
    """None without coverage and risk; ConfigError or CheckpointError where the validation images cannot guarantee it."""
    if coverage is None and risk is None:
        return None
    for key, value in (("coverage", coverage), ("risk", risk)):
        check_type(key, value, float | None)
        check_range(key, value, None)
    check_type("sets", sets, SetMethod)
    wanted = f"coverage={coverage}" if risk is None else f"risk={risk}"
    check_answers(coverage=coverage, risk=risk, calibrated=calibrated, tta=tta)
    record = _validation_record(checkpoint, wanted)
    if risk is not None:
        return Guarantee(None, answer_threshold(record.probability, record.predicted != record.label, risk))
    assert coverage is not None
    u = _numbers(np.arange(1, len(record.label) + 1, dtype=np.uint64))
    scores = set_scores(sets, record.true_probability, record.before, record.rank, u)
    thresholds = set_thresholds(scores, record.label, checkpoint.classes, coverage, by_class=sets_by_class)
    return Guarantee(SetRule(sets, thresholds), None)


def set_thresholds(
    scores: NDArray[np.float64], labels: NDArray[np.integer[Any]], classes: Sequence[str], coverage: float, *, by_class: bool
) -> NDArray[np.float64]:
    """`fit_sets`; ConfigError for too few images."""
    try:
        return fit_sets(scores, labels, len(classes), coverage, by_class=by_class)
    except TooFewImages as few:
        others = f", and too few of {plural(few.others, 'other class', 'es')}" if few.others else ""
        what = "" if few.label is None else f" of class {shorten(classes[few.label])}{others}"
        most = math.floor(1000 * few.count / (few.count + 1)) / 1000
        raise ConfigError(
            f"coverage={coverage}: it takes {few.needed:,} validation images, and there are {few.count:,}{what}. "
            f"{f'Set coverage={most}, or train' if most else 'Train'} with more validation images (data.val_share)."
        ) from few


def answer_threshold(probability: FloatArray, wrong: NDArray[np.bool_], risk: float) -> float:
    """`risk_threshold`; ConfigError where no threshold holds."""
    try:
        return risk_threshold(probability, wrong, risk)
    except RiskNotShown as reason:
        hint = f"Set risk={reason.least}, or train with more validation images (data.val_share)."
        raise ConfigError(f"risk={risk}: {reason} {'Train a better network.' if reason.least is None else hint}") from reason


def _validation_record(checkpoint: Checkpoint, wanted: str) -> ValidationRecord:
    if checkpoint.calibration is None:
        raise CheckpointError(
            f"{wanted}: {checkpoint.file} has no record of validation images, which this is fitted on. "
            f"Train again with validation images (data.val_share), or leave {wanted.partition('=')[0]} out."
        )
    return checkpoint.calibration.validation


def _pixel_words(images: Tensor) -> NDArray[np.uint64]:
    """64 bits of a hash of the pixels of each image [B]."""
    digests = b"".join(blake2b(image, digest_size=8).digest() for image in images.contiguous().numpy())
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _numbers(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each word [B]."""
    return hash_words(0, CLASS_SETS, [words])
