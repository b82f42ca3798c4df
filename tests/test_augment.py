"""Geometry against torchvision and scipy given the same numbers; laws of draws against theirs; independence of the batch."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_parts import raises_error
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import ndimage, stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from imgrec import config
from imgrec.config.instantiate import check_signatures
from imgrec.config.named_values import Fill
from imgrec.data import counter_rng, geometry
from imgrec.data.augment import Augment, _corners
from imgrec.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf" / "augment"
BILINEAR = v2.InterpolationMode.BILINEAR
OPERATIONS = list(v2.RandAugment._AUGMENTATION_SPACE)


def augment(**keys: Any) -> Augment:
    off = OmegaConf.to_container(OmegaConf.load(CONF / "none.yaml"))
    assert isinstance(off, dict)
    del off["_target_"]
    assert keys.keys() <= off.keys()
    return Augment(**{**off, **keys})


def pictures(count: int = 5, channels: int = 3, height: int = 20, width: int = 26) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(count))


def given_draws(monkeypatch: pytest.MonkeyPatch, u: Tensor) -> None:
    monkeypatch.setattr(counter_rng, "uniform", lambda seed, epoch, indices, stream, count: u[: len(indices), :count])


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high)


# ---- one map each, against torchvision -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(angle=number(-180, 180), dx=number(-9, 9), dy=number(-9, 9), scale=number(0.5, 1.5), shear=number(-45, 45))
def test_affine_equals_torchvision(angle: float, dx: float, dy: float, scale: float, shear: float) -> None:
    images = pictures(1)
    maps = geometry.affine(*(torch.tensor([value]) for value in (angle, dx, dy, scale, shear)))
    ours = geometry.resample(images, maps[:, :2], None, fill="zeros")
    theirs = F.affine(images, angle=angle, translate=[dx, dy], scale=scale, shear=[shear, 0.0], interpolation=BILINEAR)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@settings(deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), min_size=4, max_size=4))
@example(moves=[(0, 2), (7, 0), (8, 0), (8, 5)])  # torchvision's is NaN at a pixel on the horizon
def test_perspective_equals_torchvision(moves: list[tuple[int, int]]) -> None:
    images, (height, width) = pictures(1), (20, 26)
    (a, b), (c, d), (e, f), (g, h) = moves
    corners = [[a, b], [width - 1 - c, d], [width - 1 - e, height - 1 - f], [g, height - 1 - h]]
    ours = geometry.resample(images, geometry.perspective(torch.tensor([corners]).float(), height, width), None, fill="zeros")
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    theirs = F.perspective(images, start, corners, interpolation=BILINEAR)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, torch.where(theirs.isnan(), ours, theirs), rtol=0, atol=5e-4)


@pytest.mark.parametrize("fill", ["zeros", "nearest"])
def test_pixels_on_the_horizon_are_outside_the_image(fill: Fill) -> None:
    maps = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.0, 1.0]]])  # divides by 0 where x is 2.5 left of the centre
    images = pictures(1)
    moved = geometry.resample(images, maps, None, fill=fill)
    assert moved.isfinite().all()
    if fill == "zeros":
        assert (moved[..., 10] == 0).all()


@pytest.mark.parametrize(("alpha", "sigma"), [(50.0, 2.0), (20.0, 0.7), (9.0, 0.0)])
def test_elastic_equals_torchvision(alpha: float, sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, noise = pictures(1), torch.rand(1, 2, 20, 26)
    parts = iter(noise.split(1, dim=1))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", lambda *size: next(parts))
        theirs = v2.ElasticTransform(alpha=alpha, sigma=max(sigma, 1e-9)) if sigma else v2.ElasticTransform(alpha=alpha)
        if not sigma:
            theirs.sigma = [0.0, 0.0]  # its constructor refuses 0, its code serves it
        field = theirs.make_params([images])["displacement"]
    ours = geometry.displacement(noise, alpha, sigma)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), field, rtol=1e-4, atol=1e-6)
    moved = geometry.resample(images, torch.eye(3)[None, :2], ours, fill="zeros")
    torch.testing.assert_close(moved, F.elastic(images, field, interpolation=BILINEAR), rtol=0, atol=2e-4)


def test_elastic_serves_pictures_smaller_than_its_kernel() -> None:
    # Reflected again and again: what numpy's padding gives, while torchvision's refuses.
    noise, reach = np.random.default_rng(0).random((2, 6, 5)), 16
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / 4.0) ** 2)
    field = np.pad(noise * 2 - 1, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    for axis in (1, 2):
        field = np.apply_along_axis(np.convolve, axis, field, kernel / kernel.sum(), mode="valid")
    ours = geometry.displacement(torch.from_numpy(noise)[None].float(), 10.0, 4.0)[0]
    np.testing.assert_allclose(ours.numpy(), field * 10.0 / np.array([5, 6])[:, None, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_nearest_fill_equals_scipy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = pictures(1, 1)
    values = (torch.rand(5, 1, generator=generator) - 0.5) * torch.tensor([[90.0], [16.0], [16.0], [0.8], [60.0]])
    values[3] += 1
    maps = geometry.affine(*values)
    ours = geometry.resample(images, maps[:, :2], None, fill="nearest")
    # scipy's positions are (row, column) from the top left corner.
    swapped = maps[0].double().numpy()[[1, 0]][:, [1, 0, 2]]
    centre = np.array([9.5, 12.5])
    offset = swapped[:, 2] + centre - swapped[:, :2] @ centre
    theirs = ndimage.affine_transform(images[0, 0].numpy(), swapped[:, :2], offset, order=1, mode="nearest")
    np.testing.assert_allclose(ours[0, 0].numpy(), theirs, rtol=0, atol=2e-4)


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    images, indices = pictures(40, 3), torch.arange(40)
    alternating = augment(flip=0.5, flip_alternates=True)
    first, second, third = (alternating.batch(images, seed=3, epoch=epoch, indices=indices) for epoch in range(3))
    assert torch.equal(first, augment(flip=0.5).batch(images, seed=3, epoch=0, indices=indices))
    assert torch.equal(second, F.hflip(first))
    assert torch.equal(third, first)
    assert not torch.equal(first, images)


# ---- the whole of `batch` ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("nearest", "edge")])
def test_crop_and_flip_copy_pixels_as_torchvision(channels: int, fill: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, images = 40, pictures(40, channels)
    u = torch.rand(count, 16, generator=torch.Generator().manual_seed(1))
    given_draws(monkeypatch, u)
    ours = augment(flip=0.5, crop_padding=0.15, fill=fill).batch(images, seed=0, epoch=0, indices=torch.arange(count))
    for image, result, (flip, x, y) in zip(images, ours, u[:, :3].tolist(), strict=True):
        padded = F.pad(image, [4, 3], padding_mode=mode)  # 0.15 of 26 and of 20
        expected = F.crop(padded, int(y * 7), int(x * 9), 20, 26)
        assert torch.equal(result, F.hflip(expected) if flip < 0.5 else expected)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    reach=st.integers(0, 12),
    fill=st.sampled_from(["nearest", "zeros"]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    large=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pixels_are_moved_alike_on_every_device_and_in_every_memory_format(shape, reach, fill, dtype, memory_format, large, seed):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, shape)).to(dtype).to(memory_format=memory_format)
    flip = torch.from_numpy(rng.random(len(images)) < 0.5)
    dx, dy = (torch.from_numpy(rng.integers(-reach, reach + 1, len(images))) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "LARGE_IMAGE", 0 if large else 10**6)
        moved = geometry.flip_and_crop(images, flip, dx, dy, fill=fill)
    assert moved.dtype == dtype
    assert torch.equal(moved, geometry._gather(images, flip, dx, dy, fill))
    for image, result, mirrored, x, y in zip(images, moved, flip.tolist(), dx.tolist(), dy.tolist(), strict=True):
        padded = F.pad(image, [reach], padding_mode="edge" if fill == "nearest" else "constant")
        expected = F.crop(padded, y + reach, x + reach, *image.shape[1:])
        assert torch.equal(result, F.hflip(expected) if mirrored else expected)


def test_flips_and_crops_keep_bytes() -> None:
    images, draw = (pictures() * 255).to(torch.uint8), {"seed": 0, "epoch": 0, "indices": torch.arange(5)}
    moved, floats = (augment(flip=0.5, crop_padding=0.1).batch(x, **draw) for x in (images, images / 255))
    assert moved.dtype == torch.uint8
    assert torch.equal(moved / 255, floats)
    assert torch.equal(augment(rotation=9.0).batch(images, **draw), augment(rotation=9.0).batch(images / 255, **draw))


def test_flip_alone_equals_torchvision() -> None:
    images = pictures()
    assert torch.equal(augment(flip=1.0).batch(images, seed=0, epoch=0, indices=torch.arange(5)), F.hflip(images))


def test_affine_keys_are_in_torchvisions_units(monkeypatch: pytest.MonkeyPatch) -> None:
    images, u = pictures(8), torch.rand(8, 16, generator=torch.Generator().manual_seed(2))
    given_draws(monkeypatch, u)
    augmentation = augment(rotation=40.0, shift=0.2, shear=15.0, zoom=0.3)
    ours = augmentation.batch(images, seed=0, epoch=0, indices=torch.arange(8))
    for image, result, row in zip(images, ours, (2 * u[:, 3:8] - 1).tolist(), strict=True):
        angle, dx, dy, shear, zoom = row
        theirs = F.affine(image, 40 * angle, [0.2 * 26 * dx, 0.2 * 20 * dy], 1 + 0.3 * zoom, [15 * shear, 0.0], BILINEAR)
        torch.testing.assert_close(result, theirs, rtol=0, atol=2e-4)


def test_all_together_is_crop_then_flip_then_affine_then_perspective(monkeypatch: pytest.MonkeyPatch) -> None:
    # A smooth picture far from the edges: interpolating three times or once is then nearly the same, and only the order matters.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    blob = torch.exp(-15 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))[None, None]
    u = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.9, 0.1, 0.5, 0.1, 0.9, 0.5, 0.2, 0.7, 0.8, 0.3]])
    given_draws(monkeypatch, u)
    augmentation = augment(flip=0.5, crop_padding=0.125, rotation=30.0, shift=0.1, shear=20.0, zoom=0.2, perspective=0.4)
    ours = augmentation.batch(blob, seed=0, epoch=0, indices=torch.arange(1))
    theirs = F.hflip(F.crop(F.pad(blob, [8, 8]), int(0.2 * 17), int(0.9 * 17), 64, 64))
    theirs = F.affine(theirs, 30 * 0.6, [-6.4 * 0.4, 6.4 * 0.4], 1 - 0.2 * 0.8, [20 * 0.8, 0.0], BILINEAR)
    bound = 13  # int(0.4 * 32) + 1
    (a, b), (c, d), (e, f), (g, h) = (u[0, 8:] * bound).int().view(4, 2).tolist()
    start = [[0, 0], [63, 0], [63, 63], [0, 63]]
    theirs = F.perspective(theirs, start, [[a, b], [63 - c, d], [63 - e, 63 - f], [g, 63 - h]], BILINEAR)
    assert theirs.max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03)


def test_perspective_corners_follow_torchvisions_law() -> None:
    ours = _corners(counter_rng.uniform(0, 0, torch.arange(3000), 0, 8).view(-1, 4, 2), 0.6, 20, 26)
    # Across: randint(0, 8) and randint(26 - 8, 26), where 8 = int(0.6 * 13) + 1.
    assert ours[:, :, 0].unique().tolist() == [*range(8), *range(18, 26)]
    assert ours[:, :, 1].unique().tolist() == [*range(7), *range(13, 20)]
    for corner, axis, values in ((0, 0, range(8)), (1, 0, range(18, 26)), (2, 1, range(13, 20)), (3, 1, range(13, 20))):
        counts = [int((ours[:, corner, axis] == value).sum()) for value in values]
        assert stats.chisquare(counts).pvalue > 0.001


def test_erased_boxes_equal_torchvision_and_follow_its_law() -> None:
    count, images = 2000, pictures(2000, 1, 24, 32)
    ours = augment(erase=0.7).batch(images, seed=5, epoch=0, indices=torch.arange(count))
    changed = (ours != images)[:, 0]
    assert stats.binomtest(int(changed.any((1, 2)).sum()), count, 0.7).pvalue > 0.001
    sizes = []
    for image, result, box in zip(images, ours, changed, strict=True):
        if not box.any():
            continue
        (top, left), (bottom, right) = (side.tolist() for side in (box.nonzero().amin(0), box.nonzero().amax(0)))
        h, w = bottom - top + 1, right - left + 1
        assert torch.equal(result, F.erase(image, top, left, h, w, image.mean((1, 2), keepdim=True)))
        sizes.append((h, w, top / (24 - h), left / (32 - w)))
    torch.manual_seed(0)
    params = [v2.RandomErasing(p=1.0).make_params([images[0]]) for _ in range(1500)]
    theirs = [(p["h"], p["w"], p["i"] / (24 - p["h"]), p["j"] / (32 - p["w"])) for p in params]
    for mine, yours in zip(zip(*sizes, strict=True), zip(*theirs, strict=True), strict=True):
        assert stats.ks_2samp(mine, yours).pvalue > 0.001


EVERYTHING = {
    "flip": 0.5, "crop_padding": 0.1, "rotation": 20.0, "shift": 0.1, "shear": 5.0, "zoom": 0.1, "perspective": 0.2,
    "elastic_alpha": 20.0, "elastic_sigma": 2.0, "erase": 0.5,
}  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(7)), count=st.integers(1, 7), epoch=st.integers(0, 9))
def test_a_picture_is_augmented_alike_in_every_batch(order: list[int], count: int, epoch: int) -> None:
    images, indices, some = pictures(7), torch.arange(100, 107), torch.tensor(order[:count])
    augmentation = augment(**EVERYTHING)
    whole = augmentation.batch(images, seed=3, epoch=epoch, indices=indices)
    part = augmentation.batch(images[some], seed=3, epoch=epoch, indices=indices[some])
    torch.testing.assert_close(part, whole[some], rtol=0, atol=1e-5)  # one matrix product may round by its size
    listed = augmentation.batch(images.contiguous(memory_format=torch.channels_last), seed=3, epoch=epoch, indices=indices)
    torch.testing.assert_close(listed, whole, rtol=0, atol=1e-5)


def test_autocast_changes_nothing() -> None:
    images, indices, augmentation = pictures(), torch.arange(5), augment(**EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augmentation.batch(images, seed=0, epoch=0, indices=indices)
    assert torch.equal(inside, augmentation.batch(images, seed=0, epoch=0, indices=indices))


def test_seed_epoch_and_index_each_change_the_picture() -> None:
    images, augmentation = pictures(1), augment(rotation=20.0)
    results = [
        augmentation.batch(images, seed=seed, epoch=epoch, indices=torch.tensor([index]))
        for seed, epoch, index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for i, one in enumerate(results):
        assert all(not torch.equal(one, other) for other in results[:i])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_cpus_pictures() -> None:
    images, indices, augmentation = pictures(16), torch.arange(16), augment(**EVERYTHING)
    there = augmentation.batch(images.cuda(), seed=1, epoch=2, indices=indices.cuda()).cpu()
    torch.testing.assert_close(there, augmentation.batch(images, seed=1, epoch=2, indices=indices), rtol=0, atol=1e-3)


def test_the_input_is_left_alone_and_off_is_the_input_itself() -> None:
    images, indices = pictures(), torch.arange(5)
    before = images.clone()
    augment(**EVERYTHING).batch(images, seed=0, epoch=0, indices=indices)
    assert torch.equal(images, before)
    off = augment()
    assert not off.needs_samples
    assert not off.mixes
    targets = torch.eye(5)
    assert off.batch(images, seed=0, epoch=0, indices=indices) is images
    assert off.mix(images, targets, indices, seed=0, step=0)[0] is images
    assert off.crop_box(9, 9, seed=0, epoch=0, index=0) is None
    assert augment(mixup=0.2).mix(images[:1], targets[:1], indices[:1], seed=0, step=0)[0].equal(images[:1])


# ---- policies and the crop of files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["randaug", "autoaug", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_equal_torchvisions_under_the_samples_own_seed(policy: str, channels: int) -> None:
    image = (pictures(1, channels)[0] * 255).to(torch.uint8)
    theirs = {
        "randaug": v2.RandAugment(num_ops=3, magnitude=15),
        "autoaug": v2.AutoAugment(v2.AutoAugmentPolicy.SVHN),
        "trivial": v2.TrivialAugmentWide(),
    }[policy]
    augmentation = pickle.loads(pickle.dumps(augment(policy=policy, randaug_ops=3, randaug_magnitude=15, autoaug_policy="svhn")))
    state, different = torch.get_rng_state(), 0
    for index in range(30):
        ours = augmentation.sample(image, seed=4, epoch=2, index=index)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counter_rng.word(4, 2, index, counter_rng.POLICY, 0) >> 1)
            assert torch.equal(ours, theirs(image))
        assert (ours.shape, ours.dtype) == (image.shape, torch.uint8)
        different += not torch.equal(ours, image)
    assert different > 10


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_gives_a_grey_picture_what_it_gives_its_colour_twin(operation: str) -> None:
    grey = (pictures(1, 1)[0] * 255).to(torch.uint8)
    magnitudes, _ = v2.RandAugment._AUGMENTATION_SPACE[operation]
    values = magnitudes(31, 20, 26)
    magnitude = 0.0 if values is None else float(values[20])
    apply = v2.RandAugment()._apply_image_or_video_transform
    nearest = v2.InterpolationMode.NEAREST
    one, three = (apply(image, operation, magnitude, interpolation=nearest, fill={}) for image in (grey, grey.expand(3, -1, -1)))
    # torchvision turns three channels to grey by weights that sum to 0.9999: up to two levels less.
    assert (one.int() - three[:1].int()).abs().max() <= 2


def test_policies_refuse_other_channel_counts() -> None:
    with raises_error(ConfigError, "augment.policy=trivial", "not 4", "augment.policy=none"):
        augment(policy="trivial").sample(torch.zeros(4, 8, 8, dtype=torch.uint8), seed=0, epoch=0, index=0)


@pytest.mark.parametrize("size", [(60, 90), (200, 40)])
def test_crop_boxes_follow_torchvisions_law(size: tuple[int, int]) -> None:
    height, width = size
    augmentation = augment(crop_scale=(0.2, 0.9))
    ours = [augmentation.crop_box(height, width, seed=0, epoch=e, index=i) for e in range(3) for i in range(500)]
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=(0.2, 0.9))
    theirs = [crop.make_params([torch.zeros(1, height, width)]) for _ in range(1500)]
    for place, key in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp([box[place] for box in ours if box], [box[key] for box in theirs]).pvalue > 0.001


@settings(deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), least=number(0.05, 1), index=st.integers(0, 10**9))
def test_crop_boxes_lie_in_the_picture(height: int, width: int, least: float, index: int) -> None:
    box = augment(crop_scale=(least, 1.0)).crop_box(height, width, seed=0, epoch=0, index=index)
    assert box is not None
    top, left, h, w = box
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert min(h, w) >= 1


@pytest.mark.parametrize("size", [(10, 300), (301, 12), (7, 9)])
def test_where_no_box_fits_the_middle_is_taken_as_in_torchvision(size: tuple[int, int]) -> None:
    crop = v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3)).make_params([torch.zeros(1, *size)])
    assert augment(crop_scale=(1.0, 1.0), crop_ratio=(3 / 4, 4 / 3)).crop_box(*size, seed=0, epoch=0, index=0) == (
        crop["top"], crop["left"], crop["height"], crop["width"],
    )  # fmt: skip


# ---- settings ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("augment.crop_scale=[1,0.5]", ["augment.crop_scale=[0.5,1]"]),
        ("augment.crop_ratio=[2.0,0.5]", ["augment.crop_ratio=[0.5,2.0]"]),
        ("augment.perspective=0.96", ["0 or more", "at most 0.95", 0.0]),
        ("augment.crop_scale=[wide,1]", ["2 values"]),
    ],
)
def test_bad_values_are_refused_in_one_line(override: str, parts: list[object]) -> None:
    with raises_error(ConfigError, override, *parts):
        check_signatures(config.load("train", ["augment=basic", "augment.crop_scale=[0.5,1]", override]))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_builds_and_only_none_is_off(path: Path, size: int) -> None:
    def merged(name: str) -> Any:
        node = OmegaConf.load(CONF / f"{name}.yaml")
        for parent in node.pop("defaults", []):
            if parent != "_self_":
                node = OmegaConf.merge(merged(parent), node)
        return node

    assert path.read_text(encoding="ascii").splitlines()[0] == "_target_: imgrec.data.augment.Augment"
    by_size = "by_size_here"  # the resolver of imgrec.config, under a name of our own
    OmegaConf.register_new_resolver(by_size, lambda value, small, large: small if value < 64 else large, replace=True)
    text = OmegaConf.to_yaml(merged(path.stem)).replace("${by_size:", f"${{{by_size}:")
    root = OmegaConf.merge({"data": {"image_size": size}}, {"augment": OmegaConf.create(text)})
    node = OmegaConf.to_container(root, resolve=True)["augment"]  # type: ignore[index]
    del node["_target_"]
    augmentation = Augment(**node)
    images = pictures(2, 3, size, size)
    changed = augmentation.batch(images, seed=0, epoch=0, indices=torch.arange(2))
    assert changed.shape == images.shape
    assert (augmentation.needs_samples or changed is not images or augmentation.mixes) == (path.stem != "none")
    cropped = augmentation.crop_scale is not None
    assert augmentation.needs_samples == (cropped or path.stem in ("randaug", "autoaug", "trivial"))
