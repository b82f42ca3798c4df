"""The order of samples: each exactly once, the same global batches on any number of devices, nothing drawn too early."""

from fractions import Fraction

import numpy as np
import pytest
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st

from imgrec.data.batch import Request
from imgrec.data.class_balance import weighted_order
from imgrec.data.sampler import (
    EpochBatches,
    plan_batches,
    shuffled_order,
    split_batch,
    split_epoch,
)
from imgrec.errors import ConfigError


def batches(
    samples: int, batch_size: int, *, devices=1, order=None, seed=0, epoch=0, start=(0, 0), singles=False, **split
) -> list[list[Request]]:
    """The requests of every rank."""
    plan = split_epoch(samples, batch_size, devices=devices, singles=singles, **split)
    order = order or shuffled_order(samples, seed=seed)
    return [list(EpochBatches(plan, order, epoch=lambda: epoch, rank=rank, start=start)) for rank in range(devices)]


def together(ranks: list[list[Request]], accumulate: int, batch_size: int) -> list[list[int]]:
    """The global batches, from what all ranks got: steps of `accumulate` requests, in the order of the ranks."""
    assert len({len(requests) for requests in ranks}) == 1, "every rank must take equally many steps"
    found = []
    for first in range(0, len(ranks[0]), accumulate):
        parts = [request for requests in ranks for request in requests[first : first + accumulate]]
        assert len({request.whole for request in parts}) == 1
        samples = [int(i) for request in parts for i in request.indices]
        assert len(samples) == parts[0].whole <= batch_size
        found.append(samples)
    return found


sizes = st.integers(1, 200)
small = st.integers(1, 9)


@given(
    samples=sizes,
    batch_size=sizes,
    devices=small,
    accumulate=small,
    key=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 1000)),
)
def test_an_epoch_is_a_partition_cut_the_same_way_on_any_devices(samples, batch_size, devices, accumulate, key):
    seed, epoch = key
    alone = together(batches(samples, batch_size, seed=seed, epoch=epoch), 1, batch_size)
    ranks = batches(samples, batch_size, devices=devices, accumulate=accumulate, seed=seed, epoch=epoch)
    assert together(ranks, accumulate, batch_size) == alone
    seen = sorted(i for batch in alone for i in batch)
    left_out = set(range(samples)) - set(seen)
    assert len(seen) == len(set(seen)) == samples - len(left_out)
    assert len(left_out) == (samples > batch_size and samples % batch_size == 1)
    assert len(alone) == -(-(samples - len(left_out)) // batch_size)
    assert split_epoch(samples, batch_size, devices=devices, singles=False).steps_per_epoch == len(alone)


@given(samples=sizes, share=st.integers(1, 40), devices=small, most=st.integers(1, 40), pairs=st.booleans())
def test_no_part_is_larger_than_planned_or_a_single_in_a_short_batch(samples, share, devices, most, pairs):
    size = share * devices
    try:
        made = plan_batches(batch_size=size, samples=samples, devices=devices, max_device_batch=most, pairs=pairs)
    except ConfigError:
        assert pairs
        assert most < 3
        return
    assert made.per_device <= most
    ranks = []
    for rank in range(devices):
        requests = EpochBatches(made, lambda epoch: np.arange(samples), epoch=lambda: 0, rank=rank)
        drawn = list(requests)
        assert len(drawn) == len(requests)
        ranks.append([len(request.indices) for request in drawn])
    assert max(map(max, ranks)) <= made.per_device
    assert all(ranks[0]), "the first device always has something to do"
    whole = samples // size * made.accumulate
    parts = {part for rank in ranks for part in rank[:whole]}
    if not pairs and size % (devices * made.accumulate) == 0:
        assert parts <= {size // (devices * made.accumulate)}
    short = [part for rank in ranks for part in rank[whole:]]
    if sum(short) > 1 and (pairs or -(-size // (devices * made.accumulate)) > 2):
        assert 1 not in short


@given(
    samples=sizes,
    share=st.integers(1, 12),
    accumulate=st.integers(1, 3),
    pairs=st.booleans(),
    sampling=st.booleans(),
    start=st.none() | st.tuples(st.just(3), st.integers(0, 12)),
)
def test_batch_k_holds_the_same_samples_on_1_2_3_and_8_processes(samples, share, accumulate, pairs, sampling, start):
    size = 24 * share
    order = weighted_order(np.arange(samples) % 3, [Fraction(1, min(3, samples))] * min(3, samples), seed=5) if sampling else None
    settings = {"pairs": pairs, "start": start or (0, 0), "order": order}
    whole = order(3) if order else shuffled_order(samples, seed=0)(3)
    alone = [whole[k : k + size].tolist() for k in range(0, samples, size)]
    if len(alone) > 1 and len(alone[-1]) == 1:
        alone.pop()
    for devices in (1, 2, 3, 8):
        ranks = batches(samples, size, devices=devices, accumulate=accumulate, epoch=3, **settings)
        assert together(ranks, accumulate, size) == alone[start[1] if start else 0 :]


@given(size=sizes, devices=small, parts=small)
def test_pairs_are_never_parted_and_the_last_three_stay_together(size, devices, parts):
    runs = [run for runs in split_batch(size, devices=devices, parts=parts, pairs=True) for run in runs if run.stop > run.start]
    assert [i for run in runs for i in range(size)[run]] == list(range(size))
    assert all(run.start % 2 == 0 and (run.stop % 2 == 0 or run.stop == size) for run in runs)
    assert all(run.stop - run.start > 1 for run in runs) or size == 1


@given(size=sizes, devices=small, parts=small)
def test_without_pairs_a_batch_is_cut_as_numpy_cuts(size, devices, parts):
    theirs = [[part.tolist() for part in np.array_split(mine, parts)] for mine in np.array_split(np.arange(size), devices)]
    assert [[list(range(size)[run]) for run in runs] for runs in split_batch(size, devices=devices, parts=parts)] == theirs


@given(samples=sizes, batch_size=sizes, devices=small, done=st.integers(0, 10))
def test_a_start_leaves_out_the_batches_done_in_its_epoch_only(samples, batch_size, devices, done):
    whole = together(batches(samples, batch_size, devices=devices, epoch=3), 1, batch_size)
    resumed = batches(samples, batch_size, devices=devices, epoch=3, start=(3, done))
    assert together(resumed, 1, batch_size) == whole[done:]
    later = batches(samples, batch_size, devices=devices, epoch=4, start=(3, done))
    assert together(later, 1, batch_size) == together(batches(samples, batch_size, devices=devices, epoch=4), 1, batch_size)


@given(samples=sizes, devices=st.sampled_from([1, 2, 3, 8]), per_device=small)
def test_evaluation_sees_every_sample_once_in_order(samples, devices, per_device):
    size = per_device * devices
    ranks = batches(samples, size, devices=devices, order=lambda epoch: np.arange(samples), singles=True)
    assert [i for batch in together(ranks, 1, size) for i in batch] == list(range(samples))


def test_the_order_is_a_function_of_seed_and_epoch_that_numpy_upgrades_keep():
    """Philox4x64-10 under the key (seed, epoch), held against its authors' known answer (Random123, kat_vectors)."""
    answer = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert np.random.Philox(key=0, counter=2**256 - 1).random_raw(4).tolist() == answer  # numpy counts up before it draws
    assert shuffled_order(8, seed=0)(0).tolist() == np.argsort(np.random.Philox(key=[0, 0]).random_raw(8)).tolist()
    orders = {tuple(shuffled_order(20, seed=seed)(epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert shuffled_order(1000, seed=7)(3).tolist() == shuffled_order(1000, seed=7)(3).tolist()


def test_every_place_is_equally_likely():
    """Chi-square over 2,000 epochs of 10 samples: each of 100 cells expects 200; the 0.001 quantile for 81 degrees is 126."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), shuffled_order(10, seed=1)(epoch)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 126


def test_nothing_is_asked_before_the_first_request():
    asked = []

    def epoch() -> int:
        asked.append(1)
        return 5

    drawn = iter(EpochBatches(split_epoch(4, 2, devices=1), shuffled_order(4, seed=0), epoch=epoch, rank=0))
    assert not asked
    assert next(drawn).epoch == 5
    assert asked == [1]


def test_a_single_left_over_is_left_out_and_has_its_turn():
    seen = [{i for batch in together(batches(5, 2, epoch=epoch), 1, 2) for i in batch} for epoch in range(20)]
    assert all(len(epoch) == 4 for epoch in seen)
    assert set.union(*seen) == set(range(5))
    assert together(batches(1, 2), 1, 2) == [[0]]


def sizes_of(batch_size: int, samples: int, devices: int, most: int, pairs: bool = False) -> tuple[int, int, int, int, int]:
    plan = plan_batches(batch_size=batch_size, samples=samples, devices=devices, max_device_batch=most, pairs=pairs)
    return plan.global_size, plan.devices, plan.per_device, plan.accumulate, plan.steps_per_epoch


def test_plans():
    assert sizes_of(512, 10_000, devices=4, most=64) == (512, 4, 64, 2, 20)
    assert (
        str(plan_batches(batch_size=512, samples=10_000, devices=4, max_device_batch=64))
        == "global batch 512 = 4 devices x 64 x 2"
    )
    assert (
        str(plan_batches(batch_size=64, samples=100, devices=1, max_device_batch=1024)) == "global batch 64 = 1 device x 64 x 1"
    )
    whole = plan_batches(batch_size="full", samples=1437, devices=2, max_device_batch=256)
    assert str(whole) == "global batch 1437 = 2 devices x at most 240 x 3"
    assert whole.steps_per_epoch == 1


def test_a_plan_knows_of_pairs_and_of_three_in_a_short_batch():
    assert plan_batches(batch_size=6, samples=60, devices=2, max_device_batch=9).per_device == 3
    assert sizes_of(6, 60, devices=2, most=9, pairs=True) == (6, 2, 4, 1, 10)
    assert sizes_of(6, 60, devices=2, most=3, pairs=True) == (6, 2, 2, 2, 10)
    assert plan_batches(batch_size=8, samples=19, devices=4, max_device_batch=3).per_device == 3  # the last three on one device
    assert plan_batches(batch_size=8, samples=19, devices=4, max_device_batch=2).per_device == 2  # or a single on the second
    assert plan_batches(batch_size="full", samples=9_999, devices=1, max_device_batch=3, pairs=True).accumulate == 4_999
    assert plan_batches(batch_size="full", samples=9_999, devices=1, max_device_batch=64, pairs=True).per_device == 64


@pytest.mark.parametrize(("size", "samples", "most", "needs"), [(8, 80, 1, "pair on"), (8, 83, 2, "pair (three images")])
def test_a_device_that_cannot_hold_a_pair_is_refused(size, samples, most, needs):
    with raises_error(ConfigError, f"max_device_batch={most}", needs, f"max_device_batch={most + 1}"):
        plan_batches(batch_size=size, samples=samples, devices=2, max_device_batch=most, pairs=True)


@given(batch=st.integers(1, 5000), devices=st.integers(1, 16), most=st.integers(1, 500))
def test_a_plan_covers_its_batch_within_the_device_limit(batch, devices, most):
    if batch % devices:
        with pytest.raises(ConfigError):
            plan_batches(batch_size=batch, samples=batch, devices=devices, max_device_batch=most)
        return
    made = plan_batches(batch_size=batch, samples=batch, devices=devices, max_device_batch=most)
    assert made.per_device <= most
    assert made.devices * made.per_device * (made.accumulate - 1) < batch <= made.devices * made.per_device * made.accumulate


def test_a_world_that_does_not_divide_the_batch_is_told_what_does():
    with raises_error(ConfigError, "batch_size=128", "3 devices", "batch_size=126", "batch_size=129", "1 or 2 devices"):
        plan_batches(batch_size=128, samples=1000, devices=3, max_device_batch=64)
