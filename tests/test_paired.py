"""Paired comparisons against scipy, scikit-learn, closed forms, and a plain loop over resamples."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from imgrec.analysis.paired import (
    accuracy_differences,
    holm,
    macro_f1_differences,
    mcnemar_exact,
    only_right,
    paired_bootstrap,
    paired_cells,
    paired_interval,
    seeds_difference,
)


def predictions(images: int, classes: int, seed: int = 0):
    """Classes of images, and what two networks of 80% and 85% say."""
    draw = np.random.default_rng(seed)
    true = draw.integers(classes, size=images)
    first, second = (np.where(draw.random(images) < share, true, draw.integers(classes, size=images)) for share in (0.8, 0.85))
    return true, first, second


def macro_f1(true, predicted):
    return f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_has_right(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)
    tail = Fraction(sum(comb(first + second, k) for k in range(min(first, second) + 1)), 2 ** (first + second))
    assert mcnemar_exact(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


@pytest.mark.parametrize("count", [40, 150])
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.01, 0.01), (0.02, 0.1), (0.1, 0.1), (0.3, 0.05)])
def test_the_interval_without_drawing_holds_the_difference_95_times_in_100(count, shares):
    """Summed exactly over all outcomes of the multinomial distribution."""
    first, second = (grid.ravel() for grid in np.mgrid[: count + 1, : count + 1])
    outcomes = np.stack([first, second, count - first - second], axis=1)[first + second <= count]
    chance = stats.multinomial(count, [*shares, 1 - sum(shares)]).pmf(outcomes)
    likely = chance > 1e-9
    intervals = [paired_interval(*map(int, outcome[:2]), count) for outcome in outcomes[likely]]
    difference = shares[1] - shares[0]
    held = sum(p for p, (_, low, high) in zip(chance[likely], intervals, strict=True) if low <= difference <= high)
    assert held > 0.94
    agreed = paired_interval(0, 0, count)
    assert agreed.low < 0 == agreed.value < agreed.high  # else no other image could differ


def test_the_interval_without_drawing_is_that_of_samples_where_there_are_many_images():
    true, first, second = predictions(4000, 3)
    cells = paired_cells(true, first, second, 3)
    drawn, _ = paired_bootstrap(cells, 3, resamples=4000, seed=0)
    np.testing.assert_allclose(paired_interval(*only_right(cells), 4000), drawn, atol=0.001)


@fewer(8)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99))
def test_figures_of_cells_are_those_of_the_images(images, classes, seed):
    true, first, second = predictions(images, classes, seed)
    cells = paired_cells(true, first, second, classes)
    assert len({*zip(cells.true, cells.first, cells.second, strict=True)}) == len(cells.counts)
    right = (first == true, second == true)
    assert only_right(cells) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    samples = np.random.default_rng(seed).multinomial(images, cells.counts / images, size=3)
    for sample in [cells.counts, *samples]:
        each = [np.repeat(column, sample) for column in cells[:3]]
        for figure, ours in (
            (accuracy_score, accuracy_differences(cells, sample[None])),
            (macro_f1, macro_f1_differences(cells, sample[None], classes)),
        ):
            assert ours == pytest.approx([figure(each[0], each[2]) - figure(each[0], each[1])], abs=1e-12)
    together = macro_f1_differences(cells, samples, classes)
    assert together.tolist() == [macro_f1_differences(cells, sample[None], classes)[0] for sample in samples]


@pytest.mark.slow  # two seconds of scikit-learn; the samples' figures and their variance are held against others above and below
def test_the_intervals_are_those_of_a_plain_loop_over_samples_of_the_images():
    true, first, second = predictions(150, 4)
    ours = paired_bootstrap(paired_cells(true, first, second, 4), 4, resamples=20_000, seed=0)
    draw = np.random.default_rng(1)
    loop = []
    for _ in range(300):
        rows = draw.integers(150, size=150)
        loop.append([figure(true[rows], second[rows]) - figure(true[rows], first[rows]) for figure in (np_accuracy, macro_f1)])
    for interval, figure, samples in zip(ours, (np_accuracy, macro_f1), np.array(loop).T, strict=True):
        assert interval.value == pytest.approx(figure(true, second) - figure(true, first), abs=1e-12)
        # The error of a quantile of 300 samples: three times the standard error of the 2.5% point of a normal distribution.
        error = 3 * samples.std() * np.sqrt(0.025 * 0.975 / 300) / stats.norm.pdf(1.96)
        assert (interval.low, interval.high) == pytest.approx(np.quantile(samples, [0.025, 0.975]), abs=error)


def np_accuracy(true, predicted):
    return (true == predicted).mean()


def test_the_bootstrap_has_the_variance_of_the_closed_form_and_follows_its_seed():
    true, first, second = predictions(2_000, 10)
    cells = paired_cells(true, first, second, 10)
    interval, _ = paired_bootstrap(cells, 10, resamples=4_000, seed=3)
    only_first, only_second = only_right(cells)
    variance = (only_first + only_second - (only_second - only_first) ** 2 / 2_000) / 2_000**2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.05)
    assert paired_bootstrap(cells, 10, resamples=50, seed=3) == paired_bootstrap(cells, 10, resamples=50, seed=3)
    assert paired_bootstrap(cells, 10, resamples=50, seed=3) != paired_bootstrap(cells, 10, resamples=50, seed=4)


def test_samples_drawn_in_parts_are_as_many(monkeypatch):
    cells = paired_cells(*predictions(50, 3), 3)
    whole = paired_bootstrap(cells, 3, resamples=40, seed=0)
    monkeypatch.setattr("imgrec.analysis.paired.DRAWN_AT_ONCE", 7 * len(cells.counts))
    assert paired_bootstrap(cells, 3, resamples=40, seed=0) == whole


def test_two_that_say_the_same_differ_by_nothing():
    true, first, _ = predictions(50, 3)
    cells = paired_cells(true, first, first, 3)
    assert paired_bootstrap(cells, 3, resamples=20, seed=0) == ((0, 0, 0), (0, 0, 0))
    assert mcnemar_exact(*only_right(cells)) == 1
    assert seeds_difference(np.tile(first == true, (2, 1)), (first == true)[None]) == ((0, 0, 0), 1)


def test_where_only_seeds_vary_it_is_students_t_test():
    # Each image is right with one seed of three, and with one of the other network's two: images do not vary.
    shares = [[0.5, 0.3, 0.2], [0.6, 0.4]]
    first = np.repeat(np.eye(3, dtype=bool), [50, 30, 20], axis=1)
    second = np.repeat(np.eye(2, dtype=bool), [60, 40], axis=1)
    for one, two, expected in (
        (first, second, stats.ttest_ind(shares[1], shares[0])),
        (second, first, stats.ttest_ind(shares[0], shares[1])),
    ):
        difference, p = seeds_difference(one, two)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)
        assert difference[1:] == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)


def test_where_only_images_vary_it_is_the_paired_t_test_of_the_images():
    draw = np.random.default_rng(0)
    images = draw.random(200) < 0.8, draw.random(200) < 0.9
    difference, p = seeds_difference(np.tile(images[0], (3, 1)), images[1][None])
    expected = stats.ttest_rel(images[1].astype(float), images[0].astype(float))
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    assert difference[1:] == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)


def test_intervals_over_seeds_and_images_hold_the_true_difference():
    """Of equal trainings, whose seeds and images vary both: 95% of the intervals hold 0, and a few more, as they are a little wide."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        hard = draw.normal(size=400)
        right = [draw.normal(size=(seeds, 400)) + hard + draw.normal(0, 0.1, size=(seeds, 1)) < 1.5 for seeds in (3, 2)]
        (_, low, high), p = seeds_difference(*right)
        assert (p > 0.05) == (low < 0 < high)
        held += low < 0 < high
    assert 0.94 <= held / 300 <= 0.995


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_holm_rejects_what_the_steps_of_the_paper_reject(p, level):
    rejected = set()
    for step, row in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[row] * (len(p) - step) > level:
            break
        rejected.add(row)
    assert {row for row, value in enumerate(holm(p)) if value <= level} == (set(range(len(p))) if level == 1 else rejected)


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
