"""Fingerprints against imagehash's definition by scipy and PIL; pairs and groups against all pairs one by one."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from imgrec.analysis import duplicates, near_pairs
from imgrec.analysis.duplicates import Duplicates, closest, find_duplicates, usual_distance
from imgrec.analysis.fingerprint import fingerprint, low_frequencies
from imgrec.analysis.near_pairs import TooAlike, find_near

Words = NDArray[np.uint64]


def picture(seed: int, height: int = 150, width: int = 200) -> NDArray[np.uint8]:
    """uint8 [3, H, W] of smooth colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def phash(gray: Image.Image) -> int:
    """imagehash.phash: hash_size=8, highfreq_factor=4."""
    pixels = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = scipy.fft.dct(scipy.fft.dct(pixels, axis=0), axis=1)[:8, :8]
    return int("".join("01"[bit] for bit in (low > np.median(low)).ravel().astype(int)), 2)


def differing(one: Words, two: Words) -> int:
    """The distance by its definition."""
    across = [(one[0], other) for other in two] + [(two[0], other) for other in one]
    return min((int(a) ^ int(b)).bit_count() for a, b in across)


ORIENTATIONS: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
    lambda x, t=t, r=r, c=c: (x.swapaxes(1, 2) if t else x)[:, :: 1 - 2 * r, :: 1 - 2 * c]  # type: ignore[misc]
    for t, r, c in product((0, 1), repeat=3)
]


@pytest.mark.parametrize("seed", range(3))
def test_the_hash_is_imagehash_s(seed: int) -> None:
    gray = np.random.default_rng(seed).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    assert int(fingerprint(gray)[2]) == phash(Image.fromarray(gray[0]))


def test_the_hash_of_a_larger_picture_is_imagehash_s_within_the_resize() -> None:
    for seed, (height, width) in product(range(5), ((150, 200), (700, 90))):
        pixels = picture(seed, height, width)
        expected = phash(Image.fromarray(pixels.mean(axis=0).round().astype(np.uint8)))  # not weighted, as imagehash's
        assert (int(fingerprint(pixels)[2]) ^ expected).bit_count() <= 4, (seed, height)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 40), (191, 199), (96, 66)])
def test_the_low_frequencies_are_those_of_a_thumbnail(height: int, width: int) -> None:
    """As torch resizes; at these sizes all pixels are looked at."""
    gray = np.random.default_rng(0).integers(0, 256, (1, height, width), dtype=np.uint8)
    thumbnail = interpolate(torch.tensor(gray)[None].double(), (32, 32), mode="bilinear", antialias=True)[0, 0].numpy()
    expected = scipy.fft.dctn(thumbnail)[:8, :8].ravel()
    np.testing.assert_allclose(low_frequencies(gray), expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (32, 100), (211, 201), (375, 500), (901, 1303), (90, 5)])
def test_all_of_a_picture_of_any_size_is_looked_at(height: int, width: int, channels: int) -> None:
    """A slope from 0 to 200: its mean, and the integral of 200 x cos(pi x); and a picture of which one channel is not black."""
    columns = np.linspace(0, 200, width) if width > 1 else np.full(1, 100.0)
    pixels = np.broadcast_to(columns.round().astype(np.uint8), (channels, height, width))
    low = low_frequencies(pixels)
    assert low[0] / (4 * 32**2) == pytest.approx(100, abs=3)
    assert width < 32 or low[1] / (4 * 32**2) == pytest.approx(-400 / np.pi**2, abs=2)
    painted = np.zeros((3, height, width), dtype=np.uint8)
    painted[2] = 240  # of one colour
    assert low_frequencies(painted)[0] / (4 * 32**2) == pytest.approx(80, abs=3)


@pytest.mark.parametrize("place", range(8))
def test_a_hash_for_each_orientation(place: int) -> None:
    gray = np.random.default_rng(place).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    assert fingerprint(ORIENTATIONS[place](gray).copy())[2] == fingerprint(gray)[2 + place]


@pytest.mark.parametrize("place", range(8))
def test_a_mirrored_or_turned_copy_is_near(place: int) -> None:
    pixels = picture(place, 300, 400)
    copy = np.asarray(Image.fromarray(ORIENTATIONS[place](pixels).transpose(1, 2, 0)).resize((120, 130))).transpose(2, 0, 1)
    assert differing(fingerprint(pixels)[2:], fingerprint(copy)[2:]) <= 4


def test_the_pixels_have_a_hash_that_stays_the_same_in_any_memory_layout() -> None:
    pixels = picture(0)
    words = fingerprint(pixels)
    tensor = torch.tensor(pixels)
    np.testing.assert_array_equal(words, fingerprint(tensor.numpy()))
    np.testing.assert_array_equal(words, fingerprint(tensor.contiguous(memory_format=torch.contiguous_format).numpy()))
    changed = tensor.clone()
    changed[1, 70, 80] ^= 1
    reshaped = tensor.permute(1, 2, 0).reshape(200, 150, 3).permute(2, 0, 1)
    for other in (changed.numpy(), reshaped.numpy()):
        assert fingerprint(other)[0] != words[0]
        assert fingerprint(other)[1] != words[1]
    # Kept between runs, so that it must not change between versions.
    squares = (np.arange(256) ** 2 % 251).astype(np.uint8).reshape(1, 16, 16)
    assert fingerprint(squares).tolist()[:3] == [16595581068294846134, 6242026781204950256, 12862889237571122860]


@pytest.mark.parametrize("spread", [0, 3])
def test_a_picture_of_nearly_one_colour_has_no_perceptual_hash(spread: int) -> None:
    pixels = np.random.default_rng(0).integers(100, 101 + spread, (3, 90, 90), dtype=np.uint8)
    assert not fingerprint(pixels)[2:].any()
    assert fingerprint(pixels)[:2].all()


def hashes(rng: np.random.Generator, count: int) -> Words:
    """Random hashes, of which half are others with some bits changed, some of them in another orientation."""
    words = rng.integers(0, 2**64, (count, 8), dtype=np.uint64)
    for row in range(1, count, 2):
        changes = rng.integers(0, 2**64, 2, dtype=np.uint64) if rng.random() < 0.3 else [rng.integers(0, 2**64, dtype=np.uint64)]
        few = np.bitwise_and.reduce([*changes, *rng.integers(0, 2**64, 3, dtype=np.uint64)])
        words[row] = words[rng.integers(row)][rng.permutation(8) if rng.random() < 0.5 else np.arange(8)] ^ few
    return words


@fewer(8)
@given(st.integers(0, 60), st.integers(0, 4), st.integers(0, 2**32 - 1), st.sampled_from([7, 2**20]))
def test_near_pairs_are_those_of_all_pairs(count: int, distance: int, seed: int, at_once: int) -> None:
    words = hashes(np.random.default_rng(seed), count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_pairs, "COMPARED_AT_ONCE", at_once)
        patch.setattr(near_pairs, "KEY_NS", 0)  # as for many images
        patch.setattr(near_pairs, "LOOKUP_NS", 1)
        pairs, distances = find_near(words, distance)
    every = {(i, j): differing(words[i], words[j]) for i, j in combinations(range(count), 2)}
    assert dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True)) == {
        pair: bits for pair, bits in every.items() if bits <= distance
    }
    assert pairs.tolist() == sorted(pairs.tolist())


def test_many_pictures_are_compared_by_shared_bits() -> None:
    assert [key.mask for key in near_pairs._keys(50, 4)] == [0]  # no bits: all pairs
    keys = [key.mask for key in near_pairs._keys(10**6, 4)]
    assert len(keys) > 10
    for bits in combinations(range(0, 64, 7), 4):  # whichever bits differ, a key has none of them
        changes = np.uint64(sum(1 << bit for bit in bits))
        assert any(mask & changes == 0 for mask in keys)


@fewer(12)
@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_copies_are_those_of_all_pairs(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prints = np.concatenate([rng.integers(0, 2**64, (count, 2), dtype=np.uint64), hashes(rng, count)], axis=1)
    prints[rng.random(count) < 0.1, 2:] = 0
    for row in range(1, count, 3):
        prints[row] = prints[rng.integers(row)]
    labels, splits = rng.integers(0, 3, count), rng.integers(0, 3, count)
    found = find_duplicates(prints, labels, splits, 8)
    for distance in (0, 5):
        for closer, again in zip(
            closest(found, splits, distance), find_duplicates(prints, labels, splits, distance), strict=True
        ):
            np.testing.assert_array_equal(closer, again)

    def copies(i: int, j: int) -> bool:
        near = prints[i, 2] and prints[j, 2] and differing(prints[i, 2:], prints[j, 2:]) <= 8
        return bool(near) or prints[i, :2].tolist() == prints[j, :2].tolist()

    neighbours = {i: {j for j in range(count) if i != j and copies(i, j)} for i in range(count)}
    leaks = [splits[i] != 0 and any(splits[j] == 0 for j in neighbours[i]) for i in range(count)]
    assert found.in_train.tolist() == leaks
    kinds = [(*prints[i, :2].tolist(), labels[i], splits[i]) for i in range(count)]
    expected = {frozenset((kinds[i], kinds[j])) for i in neighbours for j in neighbours[i]}
    assert {frozenset((kinds[i], kinds[j])) for i, j in found.pairs.tolist()} == expected
    group = list(range(count))
    for _ in group:
        group = [min(group[i], *(group[j] for j in neighbours[i])) if neighbours[i] else -1 for i in range(count)]
    firsts = sorted(set(group) - {-1})
    assert found.groups.tolist() == [firsts.index(first) if first >= 0 else -1 for first in group]
    for pair, bits, same, across, two in zip(
        found.pairs.tolist(), found.distances, found.same_pixels, found.across_splits, found.two_labels, strict=True
    ):
        i, j = pair
        assert i < j
        assert same == (prints[i, :2].tolist() == prints[j, :2].tolist())
        assert bits == (0 if same else differing(prints[i, 2:], prints[j, 2:]))
        assert (across, two) == (splits[i] != splits[j], labels[i] != labels[j])


@fewer(10)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_fewer_pairs_say_the_same_of_each_image(count: int, seed: int) -> None:
    """Of pictures in many classes: against all pairs."""
    rng = np.random.default_rng(seed)
    prints = np.concatenate([rng.integers(0, 2**64, (4, 2), dtype=np.uint64), hashes(rng, 4)], axis=1)[rng.integers(0, 4, count)]
    labels, splits = rng.integers(0, 5, count), rng.integers(0, 3, count)
    every = find_duplicates(prints, labels, splits, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST_PAIRS_OF_EDGE", 0)
        some = find_duplicates(prints, labels, splits, 8)
    np.testing.assert_array_equal(every.groups, some.groups)
    np.testing.assert_array_equal(every.in_train, some.in_train)
    of_every = dict(zip(map(tuple, every.pairs.tolist()), zip(*every[1:5], strict=True), strict=True))
    of_some = dict(zip(map(tuple, some.pairs.tolist()), zip(*some[1:5], strict=True), strict=True))
    assert of_some.items() <= of_every.items()

    def shown(found: Duplicates) -> set[tuple[object, ...]]:
        """Of each image with which distance and pixels it has a copy: in which splits, in which of them under another label, in its place."""
        one, two = np.concatenate([found.pairs, found.pairs[:, ::-1]]).T
        differs, across = np.tile(found.two_labels, 2), np.tile(found.across_splits, 2)
        how = [one, np.tile(found.distances, 2), np.tile(found.same_pixels, 2), splits[two]]
        rows = [("there", how), ("other label", [column[differs] for column in how])]
        rows.append(("in its place", [column[~differs & ~across] for column in how]))
        return {(what, *row) for what, columns in rows for row in zip(*(column.tolist() for column in columns), strict=True)}

    assert shown(some) == shown(every)


def test_a_picture_in_every_class_has_a_few_pairs_for_each_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = np.tile(fingerprint(picture(0)), (2000, 1))
    labels, splits = np.tile(np.arange(1000), 2), np.repeat([0, 1], 1000)
    found = find_duplicates(prints, labels, splits)
    assert len(found.pairs) < 5 * 2000  # of 2 million
    assert found.in_train.tolist() == (splits == 1).tolist()
    assert not found.groups.any()
    assert np.unique(found.pairs[found.two_labels]).tolist() == list(range(2000))
    prints[::2, 0] ^= np.uint64(1)  # two pictures, nearly the same
    monkeypatch.setattr(duplicates, "MOST_NEAR_PAIRS", 1999)
    assert find_duplicates(prints, labels, splits).too_alike
    monkeypatch.setattr(duplicates, "MOST_NEAR_PAIRS", 2000)
    assert not find_duplicates(prints, labels, splits).too_alike


def test_a_thousand_equal_images_are_a_thousand_pairs() -> None:
    prints = np.tile(fingerprint(picture(0)), (1000, 1))
    found = find_duplicates(prints, np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64))
    assert found.pairs.tolist() == [[0, row] for row in range(1, 1000)]
    assert not found.groups.any()
    assert not found.across_splits.any() | found.two_labels.any() | found.in_train.any()


def test_pictures_that_all_look_alike_are_no_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_pairs, "MOST_NEAR_PAIRS", 100)
    prints = np.ones((50, 10), dtype=np.uint64)
    prints[:, 0] = np.arange(50)
    prints[1, 0] = 0
    with pytest.raises(TooAlike):
        find_near(prints[:, 2:], 4)
    found = find_duplicates(prints, np.arange(50), np.zeros(50, dtype=np.int64))
    assert found.too_alike
    assert found.pairs.tolist() == [[0, 1]]


def test_the_more_pictures_the_closer_are_near_duplicates() -> None:
    assert [usual_distance(count) for count in (0, 1, 6_000, 7_000, 20_000, 21_000, 63_000, 64_000, 10**7)] == [
        *(8, 8, 8, 6, 6, 4, 4, 2, 2)
    ]
    for count in (10_000, 30_000, 100_000):
        false_pairs = 1.5e-7 * 10 ** ((usual_distance(count) - 8) / 2) * count**2 / 2
        assert 0.3 <= false_pairs <= 8, count
