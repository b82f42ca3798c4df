"""Prediction sets and answers with a promised error, against MAPIE, crepes, SciPy and closed forms."""

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from error_parts import raises_error
from hypothesis import assume, given
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import RAPSConformityScore
from marks import fewer
from scipy.stats import binomtest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit

from imgrec.analysis.prediction_sets import (
    APART,
    RISK_LEVEL,
    RiskNotShown,
    SetRule,
    conformal_quantile,
    conformal_rank,
    fit_sets,
    images_for_coverage,
    images_for_risk,
    ranked_classes,
    risk_threshold,
    set_scores,
)
from imgrec.errors import ConfigError
from imgrec.inference.guarantee import answer_threshold, set_thresholds

CLASSES = tuple("abcdefg")


class Given(ClassifierMixin, BaseEstimator):
    """An estimator whose input are the probabilities."""

    classes_ = np.arange(len(CLASSES))
    n_features_in_ = len(CLASSES)

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


def draw(seed, count=80):
    """Probabilities of images of a calibrated network, and their labels."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(CLASSES), 0.5), count)
    labels = (rng.random((count, 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1)
    labels[: len(CLASSES)] = range(len(CLASSES))  # each is there
    return probabilities, labels


def own_scores(method, probabilities, labels, u, **regular):
    rows = np.arange(len(labels))
    before, rank = ranked_classes(probabilities)
    return set_scores(method, probabilities[rows, labels], before[rows, labels], rank[rows, labels], u, **regular)


def mapie_sets(score, calibration, new, coverage, random_state, **params):
    classifier = SplitConformalClassifier(Given(), confidence_level=coverage, conformity_score=score, random_state=random_state)
    classifier.conformalize(*calibration)
    return classifier.predict_set(new, conformity_score_params=params)[1][:, :, 0]


@fewer(6)
@given(seed=st.integers(0, 2**32 - 1), coverage=st.sampled_from([0.51, 0.77, 0.9, 0.93]))
def test_lac_gives_the_sets_of_mapie_and_of_crepes(seed, coverage):
    calibration, (new, _) = draw(seed), draw(seed + 1)
    scores = own_scores("lac", *calibration, 0)
    found = SetRule("lac", fit_sets(scores, calibration[1], len(CLASSES), coverage, by_class=False)).sets(new, 0)
    assert np.array_equal(found, mapie_sets("lac", calibration, new, coverage, None))
    assert np.array_equal(found, ConformalClassifier().fit(scores).predict_set(1 - new, confidence=coverage, smoothing=False))


@fewer(6)
@given(seed=st.integers(0, 2**32 - 1), coverage=st.sampled_from([0.51, 0.61]))
def test_thresholds_by_class_give_the_sets_of_crepes_by_class(seed, coverage):
    calibration, (new, _) = draw(seed), draw(seed + 1)
    assume(np.bincount(calibration[1]).min() >= 2)
    scores = own_scores("lac", *calibration, 0)
    found = SetRule("lac", fit_sets(scores, calibration[1], len(CLASSES), coverage, by_class=True)).sets(new, 0)
    crepes = ConformalClassifier().fit(scores, bins=calibration[1])
    for label in range(len(CLASSES)):
        bins = np.full(len(new), label)
        theirs = crepes.predict_set(1 - new[:, [label]], bins=bins, confidence=coverage, smoothing=False)
        assert np.array_equal(found[:, [label]], theirs)


@fewer(6)
@given(seed=st.integers(0, 2**32 - 1), coverage=st.sampled_from([0.51, 0.77, 0.93]), random=st.booleans())
def test_aps_gives_the_sets_of_mapie(seed, coverage, random):
    calibration, (new, _) = draw(seed), draw(seed + 1)
    theirs = mapie_sets(
        "aps", calibration, new, coverage, np.random.RandomState(seed), include_last_label="randomized" if random else True
    )
    numbers = np.random.RandomState(seed)  # MAPIE counts what is left of the class's own probability
    scores = own_scores("aps", *calibration, 1 - numbers.uniform(size=len(calibration[1])))
    rule = SetRule("aps", fit_sets(scores, calibration[1], len(CLASSES), coverage, by_class=False))
    assert np.array_equal(rule.sets(new, 1 - numbers.uniform(size=len(new)) if random else 0), theirs)


@fewer(6)
@given(seed=st.integers(0, 2**32 - 1), coverage=st.sampled_from([0.51, 0.77, 0.93]), random=st.booleans())
def test_raps_gives_the_sets_of_mapie(seed, coverage, random):
    (x, y), (new, _) = draw(seed, 160), draw(seed + 1)
    assume(np.bincount(y).min() >= 2)  # MAPIE splits by class
    score = RAPSConformityScore()
    params = {"include_last_label": "randomized" if random else True}
    theirs = mapie_sets(score, (x, y), new, coverage, np.random.RandomState(seed), **params)
    numbers = np.random.RandomState(seed)
    rest, _ = next(StratifiedShuffleSplit(1, test_size=score.size_raps, random_state=numbers).split(x, y))
    regular = {"penalty": score.lambda_star, "free": score.k_star[0]}  # which MAPIE chose on the other part
    scores = own_scores("raps", x[rest], y[rest], 1 - numbers.uniform(size=len(rest)), **regular)
    thresholds = fit_sets(scores, y[rest], len(CLASSES), coverage, by_class=False)
    # Which class is the last that may be in a set, MAPIE 1.6 finds with the penalty of the class before it.
    last = SetRule("raps", thresholds, penalty=score.lambda_star, free=score.k_star[0] + 1).sets(new, 0)
    if not random:
        assert np.array_equal(last, theirs)
        return
    # From the second penalty on it takes that out of what the random number is multiplied with: larger sets than the score's.
    found = SetRule("raps", thresholds, **regular).sets(new, 1 - numbers.uniform(size=len(new)))
    same = last.sum(axis=1) <= score.k_star[0] + 1
    assume(same.any())  # with a high coverage all sets may be larger
    assert np.array_equal(found[same], theirs[same])
    assert not (found & ~theirs).any()


def test_a_class_that_is_as_probable_as_another_is_ranked_as_argmax_ranks_it():
    before, rank = ranked_classes(np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], dtype=np.float32))
    assert rank.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert before.tolist() == [[0.5, 0.0, 0.75], [0.0, 0.5, 1.0]]


@given(count=st.integers(1, 500), hundredths=st.integers(1, 99))
def test_the_rank_is_that_of_whole_numbers(count, hundredths):
    coverage = hundredths / 100
    rank = -(-(count + 1) * hundredths // 100)
    assert conformal_rank(count, coverage) == rank
    assert (rank <= count) == (count >= images_for_coverage(coverage))
    if rank <= count:
        scores = np.random.default_rng(count).permutation(count).astype(float)
        assert conformal_quantile(scores, coverage) == rank - 1


@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(["lac", "aps", "raps"]), u=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_set_without_random_numbers_is_a_beginning_of_the_ranked_classes_and_grows_with_the_coverage(seed, method, u):
    calibration, (new, _) = draw(seed), draw(seed + 1)
    scores = own_scores(method, *calibration, u)
    small, large = (
        SetRule(method, fit_sets(scores, calibration[1], len(CLASSES), coverage, by_class=False)).sets(new, u)
        for coverage in (0.6, 0.9)
    )
    assert not (small & ~large).any()
    _, rank = ranked_classes(new)
    assert np.array_equal(small, rank < small.sum(axis=1, keepdims=True))
    if method != "lac" and u == 0:
        assert small.any(axis=1).all()


@pytest.mark.parametrize(("by_class", "parts"), [(False, ["99", "80"]), (True, ["19", "1", "b"])])
def test_too_few_images_are_refused(by_class, parts):
    labels = np.array([0] * 79 + [1])
    coverage = 0.95 if by_class else 0.99
    hint = "coverage=0.5" if by_class else "coverage=0.987"
    with raises_error(ConfigError, f"coverage={coverage}", *parts, hint, "data.val_share"):
        set_thresholds(np.zeros(80), labels, ("a", "b"), coverage, by_class=by_class)


def plain_threshold(probability, wrong, risk):
    """As the docstring says, image by image."""
    sure = sorted(zip(probability.tolist(), wrong.tolist(), strict=True), reverse=True)
    needed = [next(n for n in range(1, 10**6) if (1 - risk) ** n <= RISK_LEVEL / j) for j in range(1, 9)]
    sequences = max([j for j in range(1, 9) if needed[j - 1] * APART ** (j - 1) <= len(sure)], default=0)
    best = 0
    for j in range(sequences):
        count = needed[sequences - 1] * APART**j
        while count <= len(sure):
            if count == len(sure) or sure[count - 1][0] > sure[count][0]:
                errors = sum(fault for _, fault in sure[:count])
                if binomtest(errors, count, risk, alternative="less").pvalue > RISK_LEVEL / sequences:
                    break
                best = max(best, count)
            count += 1
    return None if not best else sure[best][0] if best < len(sure) else 0.0


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 400),
    risk=st.sampled_from([0.05, 0.1, 0.3]),
    digits=st.sampled_from([1, 2, 9]),
    error=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_the_threshold_is_that_of_one_binomial_test_after_the_other(seed, count, risk, digits, error):
    rng = np.random.default_rng(seed)
    probability = np.round(rng.uniform(0.1, 1, count), digits)  # of few digits many are equal
    wrong = rng.random(count) < error * (1.1 - probability)
    expected = plain_threshold(probability, wrong, risk)
    if expected is None:
        with pytest.raises(RiskNotShown):
            risk_threshold(probability, wrong, risk)
    else:
        assert risk_threshold(probability, wrong, risk) == expected


def test_a_risk_that_cannot_be_shown_says_how_many_images_it_takes():
    assert (1 - 0.01) ** images_for_risk(0.01) <= RISK_LEVEL < (1 - 0.01) ** (images_for_risk(0.01) - 1)
    sure, right = np.linspace(0.5, 1, 200), np.zeros(200, dtype=bool)
    with raises_error(ConfigError, "risk=0.01", "299", "200", "Set risk=0.02", "data.val_share"):
        answer_threshold(sure, right, 0.01)
    # 4 of 400 everywhere: the test at 2% needs 1% of about 800.
    wrong = np.arange(400) % 100 == 50
    needed = next(n for n in range(100, 10**5, 100) if binomtest(n // 100, n, 0.02, alternative="less").pvalue <= RISK_LEVEL)
    with pytest.raises(ConfigError) as error:
        answer_threshold(np.linspace(0.5, 1, 400), wrong, 0.02)
    figure = int(str(error.value).partition("about ")[2].split()[0].replace(",", ""))
    assert math.isclose(figure, needed, rel_tol=0.3)
    with raises_error(ConfigError, "risk=0.05", "would not help", "Set risk=0.2"):
        answer_threshold(np.linspace(0.5, 1, 400), np.arange(400) % 8 == 0, 0.05)
    with raises_error(ConfigError, "risk=0.05", "would not help", "Train a better network"):
        answer_threshold(np.linspace(0.5, 1, 400), np.ones(400, dtype=bool), 0.05)
