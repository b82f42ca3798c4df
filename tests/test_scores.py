"""Scores against scikit-learn's and torchmetrics', with ties, absent classes and a single one."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from numpy.typing import NDArray
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_auroc, multiclass_matthews_corrcoef

from imgrec.analysis.scores import CLASSES_AT_ONCE, brier_score, log_loss, matthews_correlation, one_vs_rest


class Drawn(NamedTuple):
    probabilities: NDArray[np.float64]  # [N, K], rows sum to 1
    labels: NDArray[np.int64]  # [N], of up to K classes, often of fewer


@st.composite
def predictions(draw: st.DrawFn, most_classes: int = 6) -> Drawn:
    classes, count = draw(st.integers(2, most_classes)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([2, 5, 10**6]))  # few values make ties
    scores = random.integers(1, steps + 1, (count, classes)) ** draw(st.sampled_from([1.0, 20.0]))
    probabilities = (scores / scores.sum(axis=1, keepdims=True)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return Drawn(probabilities, random.integers(0, draw(st.integers(1, classes)), count))


@fewer(8)
@given(predictions())
def test_one_against_the_rest_is_scikit_learn_s(drawn: Drawn) -> None:
    probabilities, labels = drawn
    found = one_vs_rest(probabilities, labels)
    for label, scores in enumerate(probabilities.T):
        own = labels == label
        if own.any():
            assert found.average_precision[label] == pytest.approx(metrics.average_precision_score(own, scores), abs=1e-12)
        if own.any() and not own.all():
            assert found.auroc[label] == pytest.approx(metrics.roc_auc_score(own, scores), abs=1e-12)
        assert np.isnan(found.average_precision[label]) == (not own.any())
        assert np.isnan(found.auroc[label]) == (not own.any() or own.all())


@fewer(8)
@given(predictions())
def test_log_loss_and_brier_score_are_scikit_learn_s(drawn: Drawn) -> None:
    probabilities, labels = drawn
    classes = list(range(probabilities.shape[1]))
    exact = probabilities.astype(np.float64).clip(np.finfo(probabilities.dtype).eps)
    exact /= exact.sum(axis=1, keepdims=True)  # what float32 rounds
    near = 1e-12 if probabilities.dtype == np.float64 else 1e-6
    found = log_loss(probabilities[np.arange(len(labels)), labels])
    assert found == pytest.approx(metrics.log_loss(labels, exact, labels=classes), abs=near)
    theirs = metrics.brier_score_loss(labels, exact, labels=classes, scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(theirs, abs=near)


@fewer(8)
@given(predictions())
def test_the_correlation_is_scikit_learn_s_and_torchmetrics(drawn: Drawn) -> None:
    predicted, classes = drawn.probabilities.argmax(axis=1), drawn.probabilities.shape[1]
    found = matthews_correlation(metrics.confusion_matrix(drawn.labels, predicted, labels=range(classes)))
    if len({*drawn.labels.tolist()}) == 1 or len({*predicted.tolist()}) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(metrics.matthews_corrcoef(drawn.labels, predicted), abs=1e-12)
        theirs = multiclass_matthews_corrcoef(torch.from_numpy(predicted), torch.from_numpy(drawn.labels), classes)
        assert found == pytest.approx(theirs.item(), abs=1e-6)


def test_more_classes_than_are_sorted_at_once() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES_AT_ONCE + 2, 400)
    probabilities = random.dirichlet(np.ones(CLASSES_AT_ONCE + 2), 400)
    macro = np.nanmean(one_vs_rest(probabilities, labels).auroc)
    assert macro == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-12)
    theirs = multiclass_auroc(torch.from_numpy(probabilities), torch.from_numpy(labels), CLASSES_AT_ONCE + 2)
    assert macro == pytest.approx(theirs.item(), abs=1e-6)


def test_an_impossible_class_that_is_true_is_a_large_but_finite_loss() -> None:
    assert log_loss(np.array([0.0], dtype=np.float32)) == pytest.approx(-np.log(2.0**-23), abs=1e-12)
    assert brier_score(np.array([[1.0, 0.0]]), np.array([1])) == 2
