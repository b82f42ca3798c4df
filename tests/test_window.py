"""The order of samples with a window of shards: each once, few shards at a time, mixed at both ends, equal on any ranks."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sampler import batches, together

from imgrec.data.class_balance import weighted_order
from imgrec.data.sampler import shuffled_order
from imgrec.data.window import windowed_order

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)  # images of each shard
seeds, epochs, windows = st.integers(0, 2**32 - 1), st.integers(0, 99), st.integers(1, 14)


def shards_of(sizes: list[int]) -> np.ndarray:
    """Shards of these sizes whose images are scattered over the split, as packed ones are."""
    return np.random.default_rng(1).permutation(np.repeat(5 + 3 * np.arange(len(sizes)), sizes))


def most_open(shards: list[int]) -> int:
    """Shards that are open at once: from their first to their last sample on a circle, cut where each is away longest."""
    count, places = len(shards), {shard: np.flatnonzero(np.equal(shards, shard)) for shard in set(shards)}
    open_at = np.zeros(count, dtype=int)
    for found in places.values():
        gaps = [(b - a) % count or count for a, b in pairwise([*found, found[0]])]
        longest = int(np.argmax(gaps))
        first, length = int(found[(longest + 1) % len(found)]), count - gaps[longest] + 1
        open_at[(first + np.arange(length)) % count] += 1
    return int(open_at.max())


@given(sizes=sizes, window=windows, seed=seeds, epoch=epochs)
def test_each_sample_once(sizes, window, seed, epoch):
    shards = shards_of(sizes)
    order = windowed_order(shuffled_order(len(shards), seed=seed), shards, window, seed=seed)(epoch)
    assert sorted(order) == list(range(len(shards)))


@given(images=st.integers(1, 20), window=st.integers(1, 3), more=st.integers(0, 8), seed=seeds, epoch=epochs)
def test_at_most_a_window_of_shards_is_read_at_any_time(images, window, more, seed, epoch):
    # With four times as many shards as the window, equally large, a shard is away for longer than it is open.
    shards = shards_of([images] * (4 * window + more))
    order = windowed_order(shuffled_order(len(shards), seed=seed), shards, window, seed=seed)(epoch)
    assert most_open(shards[order].tolist()) <= window


@given(sizes=sizes, window=windows, seed=seeds, devices=st.integers(1, 4), batch_size=st.integers(1, 9))
def test_global_batches_are_equal_on_any_number_of_ranks(sizes, window, seed, devices, batch_size):
    shards = shards_of(sizes)
    order = windowed_order(shuffled_order(len(shards), seed=seed), shards, window, seed=seed)
    alone = together(batches(len(shards), batch_size, order=order), 1, batch_size)
    assert together(batches(len(shards), batch_size, order=order, devices=devices), 1, batch_size) == alone


def test_repeated_samples_are_kept():
    shards = shards_of([30] * 8)
    base = weighted_order(np.arange(240) % 3, [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], seed=4)
    order = windowed_order(base, shards, 2, seed=4)
    for epoch in (0, 7):
        assert sorted(order(epoch)) == sorted(base(epoch))
        assert most_open(shards[order(epoch) % 240].tolist()) <= 2


def test_epochs_and_seeds_differ_and_no_words_are_shared():
    shards = shards_of([20] * 6)
    orders = [
        tuple(windowed_order(shuffled_order(120, seed=seed), shards, 2, seed=seed)(epoch)) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert tuple(shuffled_order(120, seed=0)(0)) != tuple(shuffled_order(120, seed=0, stream=1)(0))


@pytest.mark.parametrize("window", [4, 9])
def test_with_all_shards_in_the_window_each_sample_is_anywhere(window):
    """Chi-square of where samples of the first shard come in 400 epochs: 8 eighths of the epoch, 4 x 25 samples of 100."""
    shards = shards_of([25] * 4)
    order = windowed_order(shuffled_order(100, seed=0), shards, window, seed=0)
    counts = np.zeros((100, 4))
    for epoch in range(400):
        counts[order(epoch), np.arange(100) // 25] += 1
    chi = ((counts - 100) ** 2 / 100).sum(axis=1)  # of 3 degrees of freedom each
    assert 2.2 < chi.mean() < 3.8
    assert chi.max() < 25  # one in 60,000 exceeds 23


def test_begin_and_end_are_as_mixed_as_the_middle():
    """All five shards of the window are in the first, in the last and in 64 samples between two new shards."""
    shards = np.repeat(np.arange(20), 1000)
    order = windowed_order(shuffled_order(20_000, seed=0), shards, 5, seed=0)
    for epoch in range(30):
        assert [len(set(shards[order(epoch)[at : at + 64]])) for at in (0, 10_400, 19_936)] == [5, 5, 5]


def test_an_order_is_the_same_for_ever():
    shards = np.arange(12) // 3
    order = windowed_order(shuffled_order(12, seed=3), shards, 2, seed=3)
    assert order(1).tolist() == [4, 2, 1, 3, 6, 8, 0, 7, 11, 10, 5, 9]
