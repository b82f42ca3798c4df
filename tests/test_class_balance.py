"""Balanced and weighted sampling: expected frequencies against closed forms, and every repeat with its own augmentation."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imgrec import config
from imgrec.data.batch import Request
from imgrec.data.class_balance import class_shares, count_occurrences, training_order, weighted_order
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import ConfigError

COUNTS = np.array([900, 16, 0, 84])
CLASSES = ("cat", "dog", "emu", "fox")
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


def test_shares_are_those_of_the_closed_forms():
    third = Fraction(1, 3)
    assert class_shares("balanced", {}, COUNTS, CLASSES) == [third, third, 0, third]
    roots = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    assert [float(share) for share in class_shares("sqrt", {}, COUNTS, CLASSES)] == pytest.approx(roots.tolist(), rel=1e-12)
    weighted = class_shares("weighted", {"cat": 2, "dog": 0.5, "emu": 9}, COUNTS, CLASSES)
    assert weighted == [Fraction(4, 7), Fraction(1, 7), 0, Fraction(2, 7)]
    assert class_shares("weighted", {"cat": 0}, COUNTS, CLASSES) == [0, Fraction(1, 2), 0, Fraction(1, 2)]


@pytest.mark.parametrize("sampling", ["balanced", "sqrt", "weighted"])
def test_classes_and_their_images_come_as_often_as_expected(sampling):
    """Chi-square over 40 epochs of 1,000 draws, of classes and of the images of each class; 0.001 is the false alarm."""
    weights = {"cat": 2, "dog": 0.5}
    order = training_order(sampling, weights if sampling == "weighted" else {}, labels=LABELS, classes=CLASSES, seed=11)
    places = np.concatenate([order(epoch) % 1000 for epoch in range(40)])
    expected = np.array([float(share) for share in class_shares(sampling, weights, COUNTS, CLASSES)])
    seen = np.bincount(LABELS[places], minlength=4)
    assert seen[2] == 0
    assert stats.chisquare(seen[expected > 0], expected[expected > 0] * len(places)).pvalue > 0.001
    for label in (0, 1, 3):
        images = np.bincount(places, minlength=1000)[label == LABELS]
        assert stats.chisquare(images).pvalue > 0.001


def test_a_draw_is_made_of_philox_words_and_whole_numbers():
    """In Python's integers: word k chooses the class, word N + k the image."""
    found = weighted_order(LABELS, class_shares("sqrt", {}, COUNTS, CLASSES), seed=2**63 - 1)(7)
    word = [int(one) for one in np.random.Philox(key=[2**63 - 1, 7]).random_raw(2000)]
    edges = np.cumsum([30, 4, 0, np.sqrt(84)]) / (34 + np.sqrt(84)) * 2.0**64
    images = [np.flatnonzero(label == LABELS).tolist() for label in range(4)]
    for k, place in enumerate(found % 1000):
        label = int(np.searchsorted(edges[:3], float(word[k]), side="right"))
        assert place == images[label][(word[1000 + k] >> 32) * len(images[label]) >> 32]


@given(places=st.lists(st.integers(0, 4), min_size=5, max_size=40))
def test_a_code_tells_the_place_and_how_often_it_came_before(places):
    codes = count_occurrences(np.array(places), 5).tolist()
    came: Counter[int] = Counter()
    for place, code in zip(places, codes, strict=True):
        assert (code % 5, code // 5) == (place, came[place])
        came[place] += 1
    assert len(set(codes)) == len(codes)


def test_the_first_occurrence_draws_what_a_shuffled_epoch_would_and_the_next_something_else():
    class Writes:
        needs_samples, seen = True, []

        def crop_box(self, height, width, *, seed, epoch, index):
            return None

        def sample(self, image, *, seed, epoch, index):
            self.seen.append(index)
            return image

    augment = Writes()
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    split = InMemoryImages(images, np.array([0, 1, 0, 1])).for_training(augment, seed=0)
    batch = split[Request(0, np.array([3, 7, 1, 11]), 4)]
    assert batch.images.flatten().tolist() == [3, 3, 1, 3]
    assert batch.labels.tolist() == [1, 1, 1, 1]
    assert batch.indices.tolist() == augment.seen == [3, 7, 1, 11]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sampling=balance"], ("sampling=balance", "balanced")),
        (["sampling=weighted"], ("sampling=weighted", "'class_weights={CLASS: 2}'")),
        (["class_weights={cat: 2}"], ("class_weights", "sampling=shuffle", "sampling=weighted")),
        (["sampling=balanced", "class_weights={cat: 2}"], ("class_weights", "sampling=balanced")),
        (["sampling=weighted", "class_weights={cat: -1}"], ("class_weights.cat=-1",)),
        (["sampling=weighted", "class_weights={cat: inf}"], ("class_weights.cat=inf",)),
        (["sampling=weighted", "class_weights={cat: often}"], ("class_weights.cat=often",)),
        (["sampling=weighted", "class_weights=2"], ("class_weights=2", "null")),
        (["sampling=sqrt", "optim=gd"], ("sampling=sqrt", "optim=gd")),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(words, parts):
    with raises_error(ConfigError, *parts):
        config.load("train", words)


def test_a_class_that_is_not_there_is_told_the_nearest():
    with raises_error(ConfigError, "class_weights.catt", "cat", "cat, dog, emu, fox"):
        class_shares("weighted", {"catt": 2}, COUNTS, CLASSES)
    with raises_error(ConfigError, "class_weights", 0):
        class_shares("weighted", {"cat": 0, "dog": 0, "fox": 0}, COUNTS, CLASSES)


def test_names_that_are_numbers_stay_names():
    assert config.load("train", ["sampling=weighted", "class_weights={0: 2, b c: 0.5}"]).class_weights == {
        "0": 2,
        "b c": 0.5,
    }
