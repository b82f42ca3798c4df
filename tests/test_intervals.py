"""Intervals against scipy's, against a variance that is differentiated numerically, and by how often they hold the truth."""

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from marks import fewer, slow_but
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score

from imgrec.analysis.intervals import EXACT_BELOW, LEVEL, Z, macro_intervals, share_interval, wilson


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), min_size=1, max_size=6))
def test_a_share_s_interval_is_scipy_s(rows: list[tuple[int, int]]) -> None:
    hits, count = np.array([(min(pair), max(pair)) for pair in rows]).T
    found = share_interval(hits, count)
    for row, hit, of in zip(found, hits.tolist(), count.tolist(), strict=True):
        method = "exact" if of < EXACT_BELOW else "wilson"
        assert row.tolist() == pytest.approx(list(binomtest(hit, of).proportion_ci(LEVEL, method)), abs=1e-12)


def test_of_no_samples_every_share_is_possible() -> None:
    assert share_interval([0, 0], [0, 50]).tolist() == [[0, 1], [0, pytest.approx(Z**2 / (50 + Z**2))]]
    assert share_interval(356, 360).round(3).tolist() == [0.972, 0.996]  # as binomtest's above
    assert share_interval(7, 7).tolist() == [pytest.approx(0.025 ** (1 / 7)), 1]


confusions = st.integers(1, 6).flatmap(lambda k: arrays(np.int64, (k, k), elements=st.integers(0, 9))).filter(np.any)


def pairs(confusion: NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
    """true and predicted class of each sample, and the classes that have samples"""
    cells = [cell for cell in np.ndindex(confusion.shape) for _ in range(confusion[cell])]
    return [true for true, _ in cells], [predicted for _, predicted in cells], np.flatnonzero(confusion.any(axis=1)).tolist()


@fewer(15)
@given(confusions)
def test_a_macro_interval_holds_scikit_learn_s_figure_and_is_within_0_and_1(confusion: NDArray[np.int64]) -> None:
    true, predicted, present = pairs(confusion)
    for name, score in (("recall", recall_score), ("f1", f1_score)):
        low, high = macro_intervals(confusion)[name]
        figure = score(true, predicted, labels=present, average="macro", zero_division=0)
        assert 0 <= low <= figure + 1e-12
        assert figure - 1e-12 <= high <= 1


def macro(counts: NDArray[np.float64], present: NDArray[np.bool_], name: str) -> float:
    hits, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    both = 2 * hits[present] / (support + predicted)[present]
    return float(np.mean(hits[present] / support[present] if name == "recall" else both))


@fewer(15)
@given(confusions.filter(lambda confusion: len(confusion) > 1))
@example(np.array([[3, 1, 0], [0, 0, 0], [1, 0, 2]]))  # no sample of one class
def test_a_macro_interval_has_the_variance_of_the_delta_method(confusion: NDArray[np.int64]) -> None:
    classes, present = len(confusion), confusion.any(axis=1)
    smooth = confusion + np.where(np.eye(classes), 0.5, 0.5 / (classes - 1)) * present[:, None]
    for name, found in macro_intervals(confusion).items():
        variance, step = 0.0, 1e-5
        for cell in product(range(classes), repeat=2):
            up, down = smooth.copy(), smooth.copy()
            up[cell], down[cell] = up[cell] + step, down[cell] - step
            variance += smooth[cell] * ((macro(up, present, name) - macro(down, present, name)) / (2 * step)) ** 2
        mean = macro(smooth, present, name)
        expected = wilson(macro(confusion.astype(np.float64), present, name), mean * (1 - mean) / variance)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_equal_classes_have_the_interval_of_the_accuracy() -> None:
    confusion = np.full((10, 10), 10) + np.diag(np.full(10, 800))  # 900 samples a class, 810 right
    for found in macro_intervals(confusion).values():
        assert found.tolist() == pytest.approx(share_interval(8100, 9000).tolist(), abs=2e-4)


def test_without_errors_the_macro_figures_are_not_certain_and_a_rare_class_counts() -> None:
    equal, rare = macro_intervals(np.diag([180, 180])), macro_intervals(np.diag([1000, 1]))
    assert equal["recall"].tolist() == pytest.approx([0.99, 1], abs=2e-3)
    assert rare["recall"][0] < 0.6  # of the one class nothing is known
    assert macro_intervals(np.diag([40]))["f1"].tolist() == share_interval(40, 40).tolist()


@pytest.mark.parametrize(
    ("classes", "samples", "right", "repeats"),
    slow_but((10, 36, 0.98, 200), among=[(2, 20, 0.8, 2000), (10, 36, 0.98, 200), (10, 36, 0.7, 2000), (100, 50, 0.98, 300)]),
)
def test_the_macro_intervals_hold_the_true_figure(classes: int, samples: int, right: float, repeats: int) -> None:
    random = np.random.default_rng(0)
    chances = random.dirichlet(np.full(classes, 0.3), size=classes) * (1 - right) + right * np.eye(classes)
    truth = {name: macro(chances * samples, np.full(classes, True), name) for name in ("recall", "f1")}
    held = {"recall": 0, "f1": 0}
    for _ in range(repeats):
        for name, (low, high) in macro_intervals(random.multinomial(samples, chances)).items():
            held[name] += low <= truth[name] <= high
    assert all(0.92 < count / repeats < 0.99 for count in held.values()), held
