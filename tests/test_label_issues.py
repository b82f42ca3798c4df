"""Label issues: how many, and which, against a worked example and, element by element, against cleanlab."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec.analysis.label_issues import count_by_answers, count_label_issues, least_probable

# The mean probability of their label is 0.53 (of 0.9, 0.5, 0.2) for class 0, 0.6 (0.8, 0.9, 0.1) for class 1; class 2 has no image.
PROBABILITIES = np.array(
    [[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.75, 0.1, 0.15], [0.2, 0.35, 0.45]]
)
LABELS = np.array([0, 0, 1, 1, 1, 0])


def answers(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    rows = np.arange(len(labels))
    return labels, probabilities.argmax(axis=1), probabilities.max(axis=1), probabilities[rows, labels]


def test_an_image_that_is_as_sure_of_another_class_as_that_class_is_on_average_counts() -> None:
    # The last has no class that is confident, the fifth is labelled 1 and confidently 0.
    assert count_label_issues(LABELS, PROBABILITIES) == 1
    assert count_by_answers(*answers(LABELS, PROBABILITIES), 3) == 1
    assert least_probable(PROBABILITIES[np.arange(6), LABELS], 2).tolist() == [4, 5]


def drawn(seed: int, classes: int, images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(0, 1, (images, classes))
    logits[np.arange(images), np.where(generator.random(images) < 0.8, labels, generator.integers(0, classes, images))] += (
        sharpness
    )
    chances = np.exp(logits)
    return labels, chances / chances.sum(axis=1, keepdims=True)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 80), st.floats(0, 6))
@settings(max_examples=30)
def test_of_the_answers_alone_no_other_image_counts(seed: int, classes: int, images: int, sharpness: float) -> None:
    labels, chances = drawn(seed, classes, images, sharpness)
    alone, whole = count_by_answers(*answers(labels, chances), classes), count_label_issues(labels, chances)
    assert alone <= whole
    assert classes > 2 or alone == whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(12, 200), st.floats(0, 6))
@settings(max_examples=100)
def test_the_same_as_cleanlab(seed: int, classes: int, images: int, sharpness: float) -> None:
    from cleanlab.count import num_label_issues
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, chances = drawn(seed, classes, images, sharpness)
    labels[:classes] = np.arange(classes)  # cleanlab wants an image of each class
    count = count_label_issues(labels, chances)
    assert count == num_label_issues(labels, chances)
    quality = get_label_quality_scores(labels, chances)
    np.testing.assert_array_equal(quality, chances[np.arange(images), labels])
    theirs = find_label_issues(
        labels, chances, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    np.testing.assert_array_equal(least_probable(quality, count), theirs)
