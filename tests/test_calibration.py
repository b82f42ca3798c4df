"""Calibration errors and temperatures against torchmetrics, scikit-learn, scipy and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer, slow_but
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional.classification import multiclass_calibration_error

from imgrec.analysis import calibration
from imgrec.analysis.calibration import calibration_error, fit_temperature, log_loss_at, reliability_bins

KINDS = ("equal_width", "equal_mass")


def answers(images: int, classes: int = 5, seed: int = 0, scale: float = 3.0):
    """Logits, and labels that follow their softmax at temperature 2."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (images, classes))
    cumulated = softmax(logits / 2, axis=1).cumsum(axis=1)
    return logits, (rng.random((images, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)


def top(logits, labels):
    probabilities = softmax(logits, axis=1)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


@fewer(20)
@given(images=st.integers(1, 300), bins=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_error_of_equal_widths_is_that_of_torchmetrics(images, bins, seed):
    logits, labels = answers(images, seed=seed)
    theirs = multiclass_calibration_error(torch.tensor(softmax(logits, axis=1)), torch.tensor(labels), num_classes=5, n_bins=bins)
    ours = calibration_error(*top(logits, labels), binning="equal_width", bins=bins)
    assert ours.value == pytest.approx(float(theirs), abs=2e-6)  # theirs is float32
    assert 0 <= ours.low <= ours.value <= ours.high


@pytest.mark.parametrize(("kind", "strategy"), [("equal_width", "uniform"), ("equal_mass", "quantile")])
def test_the_bins_are_those_of_scikit_learn(kind, strategy):
    confidence, right = top(*answers(1000))
    found = reliability_bins(confidence, right, binning=kind, bins=10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    filled = found.images > 0
    assert found.accuracy[filled] == pytest.approx(accuracy, abs=1e-12)
    assert found.confidence[filled] == pytest.approx(mean, abs=1e-12)
    assert found.images.sum() == 1000
    if kind == "equal_mass":
        assert found.images.tolist() == [100] * 10


def test_the_error_in_a_closed_form():
    """100 images of 0.85, 75 of them right; 300 of 0.65, 225 of them right: each is 0.1 off."""
    confidence = np.repeat(np.float32([0.85, 0.65]), (100, 300))
    right = np.arange(400) < 75
    right[100:325] = True
    for kind in KINDS:
        assert calibration_error(confidence, right, binning=kind).value == pytest.approx(0.1, abs=1e-7)
    found = reliability_bins(confidence, right, binning="equal_width", bins=10)
    assert (found.images[6], found.images[8], found.images.sum()) == (300, 100, 400)
    assert (found.accuracy[6], found.accuracy[8]) == (0.75, 0.75)


def test_images_that_are_all_certain_are_in_the_last_bin():
    certain = np.ones(8, dtype=np.float32)
    for kind in KINDS:
        assert calibration_error(certain, np.arange(8) < 6, binning=kind).value == 0.25
        assert calibration_error(certain, certain > 0, binning=kind) == (0, 0, 0)


def test_the_interval_is_that_of_drawing_every_image():
    """Against resamples drawn one by one; the quantiles of 1,000 have an error of 3% of the width."""
    confidence, right = top(*answers(400))
    found = calibration_error(confidence, right, binning="equal_width")
    assert calibration_error(confidence, right, binning="equal_width") == found  # seeded
    rng = np.random.default_rng(1)
    place = np.minimum((confidence * 15).astype(int), 14)
    drawn, sums = rng.integers(0, 400, (2000, 400)), np.zeros((2000, 15))
    np.add.at(sums, (np.arange(2000)[:, None], place[drawn]), (right - confidence)[drawn])
    high = np.quantile(np.abs(sums).sum(axis=1) / 400, 0.975)
    assert (found.low, found.high) == pytest.approx((2 * found.value - high, high), abs=0.1 * (found.high - found.low))


COVERED = [(300, 0.1, 30), *((images, off, 200) for images in (300, 5000) for off in (0.1, 0.0))]


@pytest.mark.parametrize(("images", "off", "samples"), slow_but(COVERED[0], among=COVERED))
def test_the_interval_holds_the_true_error_in_95_of_100_samples(images, off, samples):
    """Confidence 0.55, 0.75 or 0.95, right in `off` fewer of the cases, which is the error of all images."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(samples):
        confidence = rng.choice([0.55, 0.75, 0.95], images)
        found = calibration_error(confidence, rng.random(images) < confidence - off, binning="equal_width", bins=10)
        held += found.low <= off + 1e-12 and off <= found.high
    assert held / samples > 0.95 - 3 * np.sqrt(0.95 * 0.05 / samples)


def least_loss(logits, labels) -> float:
    def loss(log_inverse):
        return -log_softmax(logits * np.exp(log_inverse), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(-minimize_scalar(loss, bounds=(-4.6, 4.6), options={"xatol": 1e-12}).x))


@fewer(10)
@given(images=st.integers(20, 200), classes=st.integers(2, 12), scale=st.sampled_from([0.3, 1, 10]), seed=st.integers(0, 99))
def test_the_temperature_is_that_of_a_scalar_minimisation(images, classes, scale, seed):
    logits, labels = answers(images, classes, seed)
    logits = logits.astype(np.float32) * np.float32(scale)
    scores, truth = torch.tensor(logits), torch.tensor(labels)
    found, expected = fit_temperature(scores, truth), least_loss(logits.astype(float), labels)
    if 0.02 < expected < 50:
        assert found == pytest.approx(expected, rel=1e-5)
    assert (
        log_loss_at(found, scores, truth)
        <= min(log_loss_at(near, scores, truth) for near in (0.99 * found, 1.01 * found)) + 1e-12
    )


def test_the_temperature_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    images = rng.normal(0, 1, (600, 8)) + np.eye(4, 8)[labels]
    network = LogisticRegression(C=1000).fit(images[:60], labels[:60])
    fitted = CalibratedClassifierCV(FrozenEstimator(network), method="temperature", ensemble=False).fit(images[60:], labels[60:])
    (theirs,) = (model.calibrators[0].beta_ for model in fitted.calibrated_classifiers_)
    logits = torch.tensor(network.decision_function(images[60:]))
    found = fit_temperature(logits, torch.tensor(labels[60:]))
    assert found == pytest.approx(float(1 / theirs), rel=1e-6)
    ours = (logits / found).softmax(dim=1).numpy()
    assert ours == pytest.approx(fitted.predict_proba(images[60:]), abs=1e-7)


def test_a_temperature_where_the_loss_has_no_minimum():
    logits = torch.eye(3) * 5
    assert fit_temperature(logits, torch.arange(3)) == 1.0  # all are right
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == calibration.TEMPERATURES[1]  # all are wrong
    almost = torch.cat([0.1 * torch.eye(3), torch.tensor([[0.0, 1e-9, 0.0]])])
    assert fit_temperature(almost, torch.tensor([0, 1, 2, 0])) == calibration.TEMPERATURES[0]
