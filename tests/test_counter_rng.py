"""Draws against the published splitmix64, and against the uniform law."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from scipy import stats

from imgrec.data import counter_rng

ANY_SEED = st.integers(0, 2**64 - 1)
SMALL = st.integers(0, 2**31)


def test_words_are_the_published_splitmix64() -> None:
    # Vigna's reference splitmix64.c started at 1234567, as listed by many implementations' test suites.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [counter_rng.splitmix64(1234567, k) for k in range(5)] == published


@settings(deadline=None)
@given(seed=ANY_SEED, epoch=SMALL, index=st.integers(0, 2**40), stream=st.integers(0, 9), k=st.integers(0, 40))
def test_the_batch_draws_what_a_worker_draws(seed: int, epoch: int, index: int, stream: int, k: int) -> None:
    batch = counter_rng.uniform(seed, epoch, torch.tensor([0, index, 7]), stream, 41)
    assert batch.dtype == torch.float32
    assert batch.shape == (3, 41)
    assert batch[1, k].item() == counter_rng.unit(seed, epoch, index, stream, k)


@settings(deadline=None)
@given(seed=ANY_SEED, indices=st.lists(SMALL, min_size=1, max_size=9), fewer=st.integers(1, 6))
def test_a_draw_depends_on_its_sample_only(seed: int, indices: list[int], fewer: int) -> None:
    whole = counter_rng.uniform(seed, 3, torch.tensor(indices), 1, 6)
    alone = torch.cat([counter_rng.uniform(seed, 3, torch.tensor([index]), 1, 6) for index in indices])
    assert torch.equal(whole, alone)
    assert torch.equal(whole[:, :fewer], counter_rng.uniform(seed, 3, torch.tensor(indices), 1, fewer))


@pytest.mark.parametrize("axis", slow_but("index", "k", among=["seed", "epoch", "index", "stream", "k"]))
def test_draws_are_uniform_and_uncorrelated_along_every_axis(axis: str) -> None:
    count, one = 20_000, torch.zeros(1, dtype=torch.int64)
    u = {
        "seed": lambda: torch.cat([counter_rng.uniform(s, 0, one, 0, 1) for s in range(count // 10)]),
        "epoch": lambda: torch.cat([counter_rng.uniform(0, e, one, 0, 1) for e in range(count // 10)]),
        "index": lambda: counter_rng.uniform(0, 0, torch.arange(count), 0, 1),
        "stream": lambda: torch.cat([counter_rng.uniform(0, 0, one, s, 1) for s in range(count // 10)]),
        "k": lambda: counter_rng.uniform(0, 0, one, 0, count),
    }[axis]()
    values = u.flatten().double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 0.001
    assert stats.chisquare(np.bincount((values * 64).astype(int), minlength=64)).pvalue > 0.001
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(len(values))


def test_no_two_coordinates_share_a_word() -> None:
    words = {counter_rng.word(*at) for at in itertools.product(range(6), range(6), range(6), range(6), range(6))}
    assert len(words) == 6**5
