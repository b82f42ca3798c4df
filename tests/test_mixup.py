"""Mixup and cutmix against torchvision's, given the same numbers, and against the Beta distribution."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from imgrec.data import mixup as mixing
from imgrec.data.augment import Augment
from imgrec.data.sampler import split_batch, split_last_batch

SHAPE = (6, 3, 10, 14)
HEIGHT, WIDTH = SHAPE[2:]
BEFORE = torch.tensor([5, 0, 1, 2, 3, 4])  # torchvision's partner: the one before, around the batch
PAIRS = torch.tensor([1, 0, 3, 2, 5, 4])


def augment(**keys: float) -> Augment:
    off = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "conf" / "augment" / "none.yaml"))
    assert isinstance(off, dict)
    return Augment(**{key: value for key, value in off.items() if key != "_target_"} | keys)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(SHAPE, generator=generator), torch.eye(4)[torch.arange(6) % 4]


@settings(deadline=None)
@given(share=st.floats(0, 1))
def test_mixup_equals_torchvision(share: float) -> None:
    images, targets = batch()
    theirs = v2.MixUp(num_classes=4)
    params = {"lam": share, "labels": targets, "batch_size": 6}
    ours = mixing.apply_mix(images, targets, BEFORE, mixing.Mix(share, None))
    torch.testing.assert_close(ours[0], theirs.transform(images, params), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs.transform(targets, params), rtol=0, atol=1e-6)


@settings(deadline=None)
@given(step=st.integers(0, 10**6))
def test_cutmix_equals_torchvision(step: int) -> None:
    images, targets = batch()
    mix = mixing.draw_mix(0.0, 1.0, HEIGHT, WIDTH, seed=0, step=step)
    assert mix.box is not None
    top, left, bottom, right = mix.box
    theirs = v2.CutMix(num_classes=4)
    params = {"box": (left, top, right, bottom), "lam_adjusted": mix.share, "labels": targets, "batch_size": 6}
    ours = mixing.apply_mix(images, targets, BEFORE, mix)
    assert torch.equal(ours[0], theirs.transform(images, params))
    torch.testing.assert_close(ours[1], theirs.transform(targets, params), rtol=0, atol=1e-6)


def test_cutmix_boxes_follow_torchvisions_law() -> None:
    ours = [mixing.draw_mix(0.0, 0.8, 24, 40, seed=1, step=step) for step in range(1500)]
    assert all(mix.box is not None for mix in ours)
    torch.manual_seed(0)
    cutmix = v2.CutMix(alpha=0.8, num_classes=2)
    theirs = [cutmix.make_params([torch.zeros(2, 3, 24, 40)]) for _ in range(1500)]
    assert stats.ks_2samp([mix.share for mix in ours], [params["lam_adjusted"] for params in theirs]).pvalue > 0.001
    for here, there in ((1, 0), (0, 1), (3, 2), (2, 3)):
        drawn = [mix.box[here] for mix in ours if mix.box is not None]
        assert stats.ks_2samp(drawn, [params["box"][there] for params in theirs]).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    shares = [mixing.draw_mix(alpha, 0.0, HEIGHT, WIDTH, seed=3, step=step).share for step in range(2000)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.001


@settings(deadline=None)
@given(
    mixup=st.sampled_from([0.0, 0.4]), cutmix=st.sampled_from([0.5, 1.0]), seed=st.integers(0, 2**40), step=st.integers(0, 10**9)
)
def test_targets_stay_distributions_and_tell_what_is_in_the_picture(mixup: float, cutmix: float, seed: int, step: int) -> None:
    # Each picture is filled with its own number, so its mean tells how much of which picture is in it.
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(SHAPE).contiguous()
    targets = torch.eye(6)
    before = images.clone()
    mix = mixing.draw_mix(mixup, cutmix, HEIGHT, WIDTH, seed=seed, step=step)
    assert mix == mixing.draw_mix(mixup, cutmix, HEIGHT, WIDTH, seed=seed, step=step)
    mixed, soft = mixing.apply_mix(images, targets, PAIRS, mix)
    assert torch.equal(images, before)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(6.0), rtol=0, atol=1e-4)


def test_each_step_takes_one_of_the_two() -> None:
    cuts = np.array([mixing.draw_mix(0.2, 1.0, HEIGHT, WIDTH, seed=0, step=step).box is not None for step in range(1000)])
    assert stats.binomtest(int(cuts.sum()), 1000, 0.5).pvalue > 0.001


def mates(kept: list[int], asked: int) -> list[int]:
    return mixing.partners(np.array(kept, dtype=np.int64), asked).tolist()


def test_partners_are_neighbours_and_the_last_three_rotate() -> None:
    assert mates([], 0) == []
    assert mates([0], 1) == [0]
    assert mates([0, 1], 2) == [1, 0]
    assert mates([0, 1, 2], 3) == [1, 2, 0]
    assert mates(list(range(7)), 7) == [1, 0, 3, 2, 5, 6, 4]
    # Files 1 and 6 could not be read: 0 is alone, 4 and 5 have each other.
    assert mates([0, 2, 3, 4, 5], 7) == [0, 2, 1, 4, 3]
    assert mates([], 7) == []


@settings(max_examples=60)
@given(
    size=st.integers(1, 48),
    full=st.sampled_from([24, 48]),
    devices=st.sampled_from([1, 2, 3, 4, 8]),
    accumulate=st.sampled_from([1, 2, 3]),
    alphas=st.sampled_from([(0.3, 0.0), (0.0, 1.0), (0.3, 1.0)]),
    step=st.integers(0, 10**6),
    unread=st.sets(st.integers(0, 47), max_size=4),
)
def test_a_global_batch_is_mixed_alike_on_any_devices(
    size: int, full: int, devices: int, accumulate: int, alphas: tuple[float, float], step: int, unread: set[int]
) -> None:
    """Bit for bit, whole and short, in any number of parts; files that could not be read are missing wherever they fall."""
    size = min(size, full)
    generator = torch.Generator().manual_seed(size)
    images, targets = torch.rand((size, 3, 5, 7), generator=generator), torch.eye(4)[torch.arange(size) % 4]
    settings = augment(mixup=alphas[0], cutmix=alphas[1])

    def mixed(first: int, last: int) -> tuple[Tensor, Tensor]:
        kept = np.array([k for k in range(last - first) if first + k not in unread], dtype=np.int64)
        rows = torch.from_numpy(first + kept)
        partners = torch.from_numpy(mixing.partners(kept, last - first))
        return settings.mix(images[rows], targets[rows], partners, seed=3, step=step)

    whole = mixed(0, size)
    if size > 1 and not unread and mixing.draw_mix(*alphas, 5, 7, seed=3, step=step).share < 0.99:
        assert not torch.equal(whole[0], images)
    found = split_batch(full, devices=devices, parts=accumulate, pairs=True)
    if size < full:
        found = split_last_batch(size, full=found, pairs=True, singles=False, most=full)
    parts = [mixed(run.start, run.stop) for runs in found for run in runs]
    for k in range(2):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])
