"""Over many splits of the digits into validation and new images, what is promised holds with the exact probability."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from marks import slow_but
from scipy.stats import betabinom, kstest

from imgrec.analysis.prediction_sets import RISK_LEVEL, conformal_rank

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
guarantees = importlib.import_module("guarantees")

CALIBRATION = 700
CASES = [(method, by_class, coverage) for method, by_class in guarantees.METHODS for coverage in (0.8, 0.95)]


@pytest.fixture(scope="module")
def pool():
    return guarantees.digits()


@pytest.mark.parametrize(("method", "by_class", "coverage"), slow_but(("lac", False, 0.95), among=CASES))
def test_the_coverage_has_the_beta_binomial_distribution(pool, request, method, by_class, coverage):
    """That of the images of a split whose set has their class, as Vovk 2012 derives it: whatever the network, and exactly."""
    splits = 200 if request.node.get_closest_marker("slow") else 40
    found = guarantees.split_sets(pool, method, coverage, CALIBRATION, splits, by_class=by_class)
    rng = np.random.default_rng(2)
    places = []  # in the distribution, for each split, or each class of it: uniform where it is that one
    for sets in found:
        for label in range(10) if by_class else [None]:
            own = int((sets.labels == label).sum()) if by_class else len(sets.labels)
            covered = sets.covered[sets.new == label] if by_class else sets.covered
            rank = conformal_rank(own, coverage)
            law = betabinom(len(covered), rank, own + 1 - rank)
            low, high = law.interval(1 - 0.001 / splits / (10 if by_class else 1))  # all together at 99.9%
            assert low <= covered.sum() <= high
            places.append(law.cdf(covered.sum() - 1) + rng.random() * law.pmf(covered.sum()))
    assert kstest(places, "uniform").pvalue > 0.001


@pytest.mark.parametrize("risk", slow_but(0.05, among=[0.02, 0.05, 0.1]))
def test_the_risk_holds_in_95_of_100_splits(pool, request, risk):
    splits = 200 if request.node.get_closest_marker("slow") else 40
    answered, wrong = guarantees.split_risks(pool, risk, CALIBRATION, splits).T
    assert (wrong <= risk).mean() >= 1 - RISK_LEVEL
    assert answered.mean() > 0.5
