"""Corruptions against closed forms, scipy and PIL; the same for an image wherever it is read; stronger with the severity."""

import colorsys
import io
import json
from functools import cache

import numpy as np
import pytest
import torch
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer, slow_but
from PIL import Image
from rich.console import Console
from scipy import ndimage
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.analysis.robustness import mean_interval, measure_robustness
from imgrec.config.instantiate import instantiate
from imgrec.data import corruptions
from imgrec.data.batch import Request
from imgrec.data.corruption_names import CORRUPTIONS, FAMILIES, corruption_names
from imgrec.data.corruptions import SEVERITIES, STRENGTHS, corrupt
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import ConfigError
from imgrec.inference.corrupted_images import CorruptedImages, CorruptedRequest, measure_corrupted
from imgrec.inference.corruption_table import corruptions_table
from imgrec.inference.predictor import load


@cache
def photographs(side: int, mode: str) -> list[np.ndarray]:
    """uint8 [C, side, side]: four cuts of two photographs that come with scikit-learn."""
    cuts = [photo[:427, left : left + 427] for photo in load_sample_images().images for left in (0, 213)]
    small = [np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BOX).convert(mode)) for cut in cuts]
    return [np.atleast_3d(pixels).transpose(2, 0, 1).copy() for pixels in small]


SHAPES = {"gray": (1, 28, 28), "wide": (3, 40, 71), "tiny": (1, 8, 8), "usual": (3, 224, 224)}
# In which the authors' own strengths are not each stronger than the one before: two have the same decay, or other lengths.
UNEVEN = {28: ("motion_blur", "pixelate", "elastic_transform"), 96: ("snow", "fog", "elastic_transform")}


@pytest.mark.parametrize("kind", slow_but("gray", among=SHAPES.keys()))
def test_each_gives_another_image_of_the_same_kind_and_only_by_its_arguments(kind):
    shape = SHAPES[kind]
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    np.random.seed(1)
    for name in CORRUPTIONS:
        found = corrupt(image, name, 3, index=7)
        assert (found.dtype, found.shape) == (np.uint8, shape)
        assert not np.array_equal(found, image), name
        np.random.random(3)  # numpy's global state has no part in it
        assert np.array_equal(corrupt(image, name, 3, index=7), found)
    assert np.array_equal(image, before)
    for name in ("gaussian_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"):
        assert not np.array_equal(corrupt(image, name, 3, index=7), corrupt(image, name, 3, index=8)), name
        assert not np.array_equal(corrupt(image, name, 3, index=7), corrupt(image, name, 3, index=7, seed=1)), name


@pytest.mark.parametrize("side", slow_but(28, among=(28, 96)))
def test_a_higher_severity_is_farther_from_the_image(side):
    images = photographs(side, "L" if side == 28 else "RGB")
    for name in CORRUPTIONS:
        results = [[corrupt(image, name, severity, index=k) for k, image in enumerate(images)] for severity in SEVERITIES]
        distance = [np.mean([np.square(x.astype(float) - y).mean() for x, y in zip(images, row, strict=True)]) for row in results]
        # Frost brightens to white, from which it comes no farther: there the picture is lost, not the level.
        lost = [
            np.mean([1 - np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(images, row, strict=True)]) for row in results
        ]
        if name not in UNEVEN[side]:
            assert distance == sorted(distance) or lost == sorted(lost), (name, distance, lost)
        elif name != "elastic_transform":  # severities 1 and 2 bend the image, the others ripple it
            assert distance[-1] > distance[0], name


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_has_its_strength(name):
    image = np.full((3, 100, 120), 128, dtype=np.uint8)
    for severity, strength in zip(SEVERITIES[:3], STRENGTHS[name][0], strict=False):
        found = corrupt(image, name, severity, index=0) / 255
        if name == "impulse_noise":
            assert [np.mean(found == end) for end in (0, 1)] == pytest.approx([strength / 2] * 2, rel=0.1)
            assert np.mean(found == 128 / 255) == pytest.approx(1 - strength, rel=0.01)
        else:  # Poisson: the variance of the photons is their number
            deviation = strength if name == "gaussian_noise" else (128 / 255 / strength) ** 0.5
            assert (found.mean(), found.std()) == pytest.approx((128 / 255, deviation), rel=0.02)


def test_blurs_are_scipys_and_leave_an_even_image_alone():
    image = photographs(28, "RGB")[0].transpose(1, 2, 0) / 255
    expected = ndimage.gaussian_filter(image, (2, 2, 0), mode="reflect", truncate=12)
    assert corruptions._gaussian(image, 2) == pytest.approx(expected, abs=1e-4)
    kernel = np.random.default_rng(0).random((5, 7))
    expected = ndimage.convolve(image, kernel[..., None] / kernel.sum(), mode="nearest")
    assert corruptions._convolve(image, kernel) == pytest.approx(expected, abs=1e-5)
    moved = corruptions._displace(image, np.full((2, 28, 28), [[[3.0]], [[-2.0]]]))
    assert moved[:-3, 2:] == pytest.approx(image[3:, :-2], abs=1e-6)
    even = np.full((3, 30, 30), 77, dtype=np.uint8)
    for name in (*FAMILIES["blur"], "elastic_transform", "pixelate", "contrast"):
        assert np.array_equal(corrupt(even, name, 5, index=1), even), name


def test_a_motion_is_half_a_gaussian_in_its_direction():
    point = np.zeros((41, 41, 1), dtype=np.float32)
    point[20, 20] = 1
    for angle, line in ((0, lambda x: x[20, 20:]), (-90, lambda x: x[20::-1, 20])):
        found = line(corruptions._smear(point, 6, 3, 1.0, angle)[..., 0])
        expected = np.exp(-0.5 * (np.arange(13) / 3) ** 2)
        assert found[1:12] / found[1] == pytest.approx(expected[1:12] / expected[1], abs=0.02)
        assert found.sum() == pytest.approx(1, abs=0.15)  # its first point reaches half a pixel back


def test_brightness_contrast_and_compression_are_those_of_hsv_numpy_and_pil():
    image = np.random.default_rng(0).integers(0, 256, (3, 96, 96), dtype=np.uint8)
    pixels = image.transpose(1, 2, 0) / 255
    brighter = corrupt(image, "brightness", 2, index=0).transpose(1, 2, 0)
    for row, column in ((0, 0), (40, 50), (95, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[row, column])
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))) * 255
        assert brighter[row, column] == pytest.approx(expected, abs=0.51)
    mean = pixels.mean(axis=(0, 1))
    flat = corrupt(image, "contrast", 4, index=0).transpose(1, 2, 0)
    assert flat == pytest.approx(((pixels - mean) * 0.1 + mean) * 255, abs=0.51)
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=10)
    assert np.array_equal(corrupt(image, "jpeg_compression", 4, index=0).transpose(1, 2, 0), np.asarray(Image.open(file)))
    blocks = Image.fromarray(image[0]).resize((24, 24), Image.Resampling.BOX).resize((96, 96), Image.Resampling.NEAREST)
    assert corrupt(image, "pixelate", 5, index=0)[0] == pytest.approx(np.asarray(blocks), abs=1)
    assert np.array_equal(corrupt(np.zeros((3, 9, 9), np.uint8), "brightness", 1, index=0), np.full((3, 9, 9), 13))  # 0.05


@fewer(8)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_the_interval_of_a_mean_is_wilsons_of_as_many_images_as_have_its_variance(hits):
    shares = np.array(hits) / 5
    low, high = mean_interval(shares)
    assert 0 <= low <= shares.mean() + 1e-12
    assert shares.mean() - 1e-12 <= high <= 1
    whole = (shares > 0.5).astype(float)  # as one severity: right or wrong
    method = "exact" if len(whole) < 40 else "wilson"
    expected = binomtest(int(whole.sum()), len(whole)).proportion_ci(0.95, method)
    assert mean_interval(whole) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_means_are_of_images_severities_and_corruptions():
    right = np.random.default_rng(0).random((50, 3, 5)) < 0.7
    found = measure_robustness(["gaussian_noise", "fog", "snow"], FAMILIES, right)
    assert found.whole.accuracy == pytest.approx(right.mean())
    assert [(row.name, row.accuracy) for row in found.families] == [
        ("noise", pytest.approx(right[:, 0].mean())),
        ("weather", pytest.approx(right[:, 1:].mean())),
    ]
    assert [(family, row.name, row.by_severity) for family, row in found.corruptions][1] == (
        "weather",
        "fog",
        tuple(right[:, 1].mean(axis=0)),
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(corruptions_table(found, rules=False))
    assert [line.split()[0] for line in console.file.getvalue().splitlines()] == [
        "corruption", "gaussian_noise", "weather", "fog", "snow", "mean",
    ]  # fmt: skip


def test_words_are_corruptions_or_families():
    assert corruption_names(["true"]) == list(CORRUPTIONS)
    assert corruption_names(["fog", "noise", "fog"]) == ["gaussian_noise", "shot_noise", "impulse_noise", "fog"]
    with raises_error(ConfigError, "corruptions=blurr", "noise, blur, weather, digital", "Did you mean blur?"):
        corruption_names(["blurr"])


def test_another_word_is_refused_before_a_checkpoint_is_read(tmp_path, capsys):
    (tmp_path / "none.ckpt").write_bytes(b"PK\x03\x04")  # as a checkpoint begins
    assert cli.main(["evaluate", str(tmp_path / "none.ckpt"), "corruptions=nois"]) == 2
    assert_refused(capsys.readouterr().err, "corruptions=nois", "Did you mean noise?")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("corrupted"))


def test_a_network_sees_the_same_corrupted_images_in_any_batch(run):
    predictor = load(run, device="cpu")
    images = instantiate(predictor.checkpoint.run.data.to_node()).split("test").take(np.arange(30))
    names = ["glass_blur", "snow"]
    measured = [
        measure_corrupted(predictor, images, names, batch_size=size, num_workers=0, group=WorkerGroup()) for size in (30, 7)
    ]
    assert measured[0] == measured[1]
    single = CorruptedImages(images)[CorruptedRequest("snow", 5, Request(0, np.array([11]), 1))]
    assert torch.equal(single.images[0], torch.from_numpy(corrupt(images.images[11].numpy(), "snow", 5, index=11)))
    everything = np.stack([corrupt(image, "snow", 5, index=k) for k, image in enumerate(images.images.numpy())])
    answers = predictor.probabilities(torch.from_numpy(everything)).argmax(dim=1).numpy()
    assert measured[0].corruptions[1][1].by_severity[4] == pytest.approx(np.mean(answers == images.labels))


@pytest.mark.parametrize("plot", slow_but("plot=none", among=("plot=none", "overwrite=true")))
def test_the_command_says_the_passes_first_and_writes_table_and_picture(run, tmp_path, capsys, plot):
    words = [f"ckpt={run}", "device=cpu", "num_workers=0", f"out={tmp_path}/e.json", plot]
    assert cli.main(["evaluate", *words, "corruptions=contrast,pixelate"]) == 0
    said = capsys.readouterr().out
    assert said.index("2 corruptions at 5 severities: 10 passes") < said.index("under corruptions")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["corruptions"]["clean_accuracy"] == found["figures"]["accuracy"]
    assert [row["name"] for row in found["corruptions"]["corruptions"]] == ["contrast", "pixelate"]
    assert [file.name for file in tmp_path.glob("*_corruptions.png")] == ["e_corruptions.png"] * (plot != "plot=none")
