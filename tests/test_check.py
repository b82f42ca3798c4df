"""imgrec check: each fault that was planted is found and nothing else, and a skip list leaves the images out."""

import base64
import html
import io
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, exif_block, fail_to_open, file_kinds, picture, stored_damage, turned_files
from marks import fewer
from PIL import Image
from test_data_folder import folder

import imgrec.scan.file_scan
from imgrec import cli
from imgrec.analysis.fingerprint import WORDS
from imgrec.analysis.image_faults import (
    ASPECT,
    BLANK_SPREAD,
    FACTS,
    GRID,
    IMBALANCE,
    LARGE,
    STATE_KINDS,
    SURE_SPREAD,
    FileState,
    Sign,
    find_class_faults,
    sample,
    spread,
    tiny_side,
)
from imgrec.data.folder import ImageFiles
from imgrec.data.skip_list import LIST_MARK, read_skip_list
from imgrec.data.split_record import find_changes
from imgrec.errors import DataError
from imgrec.files import on_progress
from imgrec.html_page import page_start
from imgrec.scan.check_page import Example, check_page, small_jpeg, thumbnail
from imgrec.scan.copy_faults import describe_copies, find_near_copies
from imgrec.scan.data_faults import find_faults, names_to_leave_out
from imgrec.scan.file_scan import Scan, look_at, scan_files
from imgrec.scan.terminal_output import SHOWN_EXAMPLES


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", "")


SIZE = 48  # data.image_size: images below 24 pixels are tiny, from 384 on they are larger than needed


def planted() -> dict[str, tuple[bytes, set[str]]]:
    """Image files, each with the kinds that have to be found in it."""
    photos = iter([picture(seed, 200, 150) for seed in range(1, 12)])
    sixteen = Image.fromarray(np.arange(120 * 90, dtype=np.uint16).reshape(90, 120) * 6)
    jpeg, png = encode(next(photos), "JPEG", quality=90), encode(next(photos), "PNG")
    floats = Image.fromarray(np.random.default_rng(0).normal(0, 1, (90, 120)).astype(np.float32))
    black = np.zeros((150, 200, 3), dtype=np.uint8) + np.random.default_rng(1).integers(0, 3, (150, 200, 1), dtype=np.uint8)
    return {
        "empty.jpg": (b"", {"unreadable"}),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>" * 40, {"unreadable"}),
        "half.jpg": (jpeg[: len(jpeg) // 2], {"truncated"}),
        "no_end.jpg": (jpeg[:-300], {"truncated"}),
        "half.png": (png[: len(png) // 2], {"truncated"}),
        "middle.jpg": (jpeg[: len(jpeg) // 2] + bytes(900) + jpeg[len(jpeg) // 2 + 900 :], {"truncated"}),
        "too_large.png": (encode(Image.new("1", (1200, 1000)), "PNG"), {"too_large"}),
        "floats.tif": (encode(floats, "TIFF"), {"no_scale"}),
        "really_png.jpg": (png, {"wrong_extension"}),
        "really_jpeg.png": (jpeg, {"wrong_extension"}),
        "icon.png": (encode(picture(23, 30, 20), "PNG"), {"tiny"}),
        "strip.jpg": (encode(picture(24, 400, 60), "JPEG"), {"extreme_aspect"}),
        "white.jpg": (encode(Image.new("RGB", (200, 150), "white"), "JPEG"), {"blank"}),
        "lens_cap.png": (encode(Image.fromarray(black), "PNG"), {"blank"}),
        "camera.jpg": (encode(picture(25, 400, 390), "JPEG"), {"larger_than_needed"}),
        "print.jpg": (encode(next(photos).convert("CMYK"), "JPEG"), {"cmyk"}),
        "xray.png": (encode(sixteen, "PNG"), {"sixteen_bits"}),
        "palette.png": (encode(next(photos).convert("P"), "PNG"), {"palette"}),
        "cut_out.png": (encode(next(photos).convert("RGBA"), "PNG"), {"alpha"}),
        "moving.webp": (encode(next(photos), "WEBP", save_all=True, append_images=[next(photos)]), {"animated"}),
        "phone.jpg": (encode(next(photos), "JPEG", exif=b"Exif\0\0" + exif_block(6)), {"exif_rotated"}),
        "two_faults.jpg": (encode(Image.new("RGB", (20, 200), "gray"), "PNG"), {"wrong_extension", "tiny", "extreme_aspect", "blank"}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes with good photographs of several formats, also upper case names, and all of `planted`, in both splits."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dög")):
            (root / split / name).mkdir(parents=True)
            for i, ending in enumerate(("jpg", "JPEG", "png", "webp", "bmp", "tif")):
                form = {"JPG": "JPEG", "TIF": "TIFF"}.get(ending.upper(), ending.upper())
                content = encode(picture(100 * (k + 1) + i + (split == "test") * 10, 160, 120), form)
                (root / split / name / f"good{i}.{ending}").write_bytes(content)
    for name, (content, _) in planted().items():
        (root / "train/cat" / name).write_bytes(content)
    (root / "test/dög/half.jpg").write_bytes(planted()["half.jpg"][0])
    return root


KEYS = {"image_size": SIZE, "max_pixels": 1_000_000, "channels": 3}
FAULTY = {name for name, (_, kinds) in planted().items() if kinds & {"unreadable", "truncated", "too_large", "tiny", "extreme_aspect", "blank"}}  # fmt: skip


def scan(data, num_workers: int = 0) -> tuple[Scan, dict]:
    splits = {split: getattr(data.splits, split) for split in ("train", "val", "test")}
    return scan_files([*splits.values()], data.root, num_workers=num_workers), splits


def test_all_that_was_planted_is_found_and_nothing_else(photos: Path) -> None:
    data = folder(photos, **KEYS)
    result, splits = scan(data)
    findings = find_faults(result, splits, {split: data.counts(split) for split in splits}, data.classes, SIZE)
    found: dict[str, set[str]] = {}
    for finding in findings:
        for name in result.names[finding.rows].tolist():
            found.setdefault(os.fsdecode(name), set()).add(finding.kind.name)
    expected = {f"train/cat/{name}": kinds for name, (_, kinds) in planted().items()}
    assert found == expected | {"test/dög/half.jpg": {"truncated"}}
    left_out = {os.fsdecode(name) for name in names_to_leave_out(result, findings).tolist()}
    assert left_out == {f"train/cat/{name}" for name in FAULTY} | {"test/dög/half.jpg"}
    said = {finding.kind.name: finding.sentences for finding in findings}
    assert "train/cat/icon.png: 30x20" in said["tiny"]
    assert "train/cat/empty.jpg: the file is empty" in said["unreadable"]
    assert "train/cat/really_png.jpg: PNG" in said["wrong_extension"]


@pytest.mark.slow
def test_workers_find_the_same(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imgrec.scan.file_scan, "FILES_AT_ONCE", 3)
    here, there = (scan(folder(photos, **KEYS), workers)[0] for workers in (0, 2))
    np.testing.assert_array_equal(here.facts, there.facts)
    np.testing.assert_array_equal(here.names, there.names)


def test_every_format_has_its_extension_and_its_signs(tmp_path: Path) -> None:
    for name, kinds in (("a", file_kinds()), ("b", {"a.png": encode(picture(0), "PNG")})):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file, content in kinds.items():
            (tmp_path / "train" / name / file).write_bytes(content)
    images = folder(tmp_path, **KEYS).read().train
    wanted = {
        Sign.CMYK: ("cmyk",),
        Sign.SIXTEEN_BITS: ("sixteen",),
        Sign.PALETTE: ("palette", "transparent_palette", "one.gif", "moving.gif"),
        Sign.ALPHA: (
            "alpha.png",
            "alpha.tif",
            "gray_alpha",
            "transparent",
        ),  # in WebP nothing is left of one without transparency
        Sign.ANIMATED: ("moving", "pages", "two"),
    }
    for row in range(len(images)):
        file = Path(images.path(row)).name
        (_, _, state, signs), pixels = look_at(images, row)
        assert (state, pixels is not None) == (FileState.WHOLE, True), file
        expected = {sign for sign, starts in wanted.items() if file.startswith(starts)}
        assert {sign for sign in Sign if signs & sign} == expected, file


@pytest.mark.slow
def test_damage_is_found_and_an_orientation_wherever_it_is(tmp_path: Path) -> None:
    turned = {name: (content, orientation) for name, orientation, content in turned_files()}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file, content in [*stored_damage().items(), *((file, content) for file, (content, _) in turned.items())]:
            (tmp_path / name / file).write_bytes(content)
    images = folder(tmp_path, **KEYS).read().train
    for row in range(len(images)):
        file = Path(images.path(row)).name
        (_, _, state, signs), pixels = look_at(images, row)
        try:
            decoded = images.decode(row)
        except DataError:
            decoded = None
        assert (decoded is not None) == (pixels is not None) == (state == FileState.WHOLE), file
        if file in turned:
            assert bool(signs & Sign.TURNED) == (turned[file][1] != 1), file


def test_a_dot_on_a_page_is_not_what_the_page_shows() -> None:
    page = np.full((3, 640, 650), 255, dtype=np.uint8)
    page[:, 0, 0] = 0
    assert BLANK_SPREAD < spread(sample(page)) < SURE_SPREAD  # so all pixels are looked at
    assert spread(page) < BLANK_SPREAD
    page[:, 100:150, 100:150] = 0
    np.testing.assert_allclose(spread(np.stack([page, page[:, ::-1]])), [page.std(axis=(1, 2)).max()] * 2)


@fewer(20)
@given(st.integers(1, 3 * GRID), st.integers(1, 3 * GRID))
def test_a_sample_is_of_pixels_all_over_the_image(height: int, width: int) -> None:
    pixels = np.arange(height * width).reshape(1, height, width)
    found = sample(pixels)
    if found is None:
        assert min(height, width) < GRID
    else:
        assert len(np.unique(found)) == GRID**2
        assert found.max() >= (height // 2) * width


@pytest.mark.parametrize(("image_size", "side"), [(8, 4), (28, 14), (32, 16), (64, 32), (128, 32), (224, 56)])
def test_tiny_is_for_the_size_of_the_input(image_size: int, side: int) -> None:
    assert tiny_side(image_size) == side


def test_classes_that_are_missing_or_rare() -> None:
    counts = {"train": np.array([IMBALANCE * 4, 4, 9]), "val": np.array([1, 1, 1]), "test": np.array([3, 0, 0])}
    found = find_class_faults(counts, ("ant", "bee", "cat"))
    assert {kind.name: sentences for kind, sentences in found.items()} == {
        "missing_class": ["test has no bee", "test has no cat"],
        "imbalance": ["ant has 40 images, bee 4"],
    }
    counts["train"][0] -= 1
    assert [kind.name for kind in find_class_faults(counts, ("ant", "bee", "cat"))] == ["missing_class"]


def test_copies_across_splits_and_classes_are_found_and_nothing_else(tmp_path: Path) -> None:
    pictures = [picture(seed, 200, 150) for seed in range(24, 48)]
    files = {
        f"{split}/{name}/{k}.png": pictures[k]
        for k, (split, name) in enumerate([(s, n) for s in ("train", "test") for n in "ab"] * 6)
    }
    small = pictures[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((160, 120), Image.Resampling.BICUBIC)
    files |= {
        "train/a/again.bmp": pictures[4],  # as train/a/4
        "train/b/other_class.png": pictures[8],  # as train/a/8
        "test/a/leaked.png": pictures[12],  # as train/a/12
        "test/a/leaked_again.bmp": pictures[12],
        "test/a/mirrored.jpg": small,  # as train/a/0
        "test/b/again.bmp": pictures[3],  # as test/b/3
        "train/a/white.png": Image.new("RGB", (200, 150), "white"),
        "test/b/white.png": Image.new("RGB", (200, 151), "white"),
    }
    for name, image in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    data = folder(tmp_path, **KEYS)
    splits = [data.read().train, data.read().test]
    result = scan_files(splits, data.root, num_workers=0)
    labels = np.concatenate([images.labels for images in splits])
    numbers = np.repeat([0, 2], [len(images) for images in splits])
    findings = describe_copies(result, labels, numbers, find_near_copies(result, labels, numbers))
    found = {finding.kind.name: set(result.names[finding.rows].astype(str)) for finding in findings}
    assert found == {
        "leak": {"test/a/leaked.png", "test/a/leaked_again.bmp", "test/a/mirrored.jpg"},
        "two_labels": {"train/a/8.png", "train/b/other_class.png"},
        "duplicate": {"train/a/again.bmp", "test/a/leaked_again.bmp", "test/b/again.bmp"},
    }
    assert set(names_to_leave_out(result, findings).astype(str)) == found["leak"] | found["two_labels"] | found["duplicate"]
    said = {finding.kind.name: finding.sentences for finding in findings}
    assert "test/a/leaked.png and train/a/12.png: the same pixels" in said["leak"]
    assert any(line.startswith("test/a/mirrored.jpg and train/a/0.png:") for line in said["leak"])
    assert said["two_labels"] == ["train/b/other_class.png and train/a/8.png: the same pixels"]  # once
    assert {finding.kind.name: finding.count for finding in findings} == {"leak": 3, "two_labels": 1, "duplicate": 3}


def test_a_copy_of_val_in_test_is_a_hint_of_its_own() -> None:
    prints = np.random.default_rng(0).integers(1, 2**64, (6, WORDS), dtype=np.uint64)
    prints[[4, 5]] = prints[[2, 0]]
    facts = np.zeros(6, dtype=FACTS)  # whole
    result = Scan(np.array([b"a", b"b", b"c", b"d", b"e", b"f"]), facts, prints, 0)
    labels, splits = np.zeros(6, dtype=np.int64), np.array([0, 0, 1, 1, 2, 2])
    findings = describe_copies(result, labels, splits, find_near_copies(result, labels, splits))
    assert {finding.kind.name: finding.rows.tolist() for finding in findings} == {"leak": [5], "in_val_and_test": [4]}
    assert findings[1].sentences == ["e and c: the same pixels"]


# What is kept


def test_only_files_that_changed_are_decoded_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    root = shutil.copytree(photos, tmp_path / "photos")
    first, _ = scan(folder(root, **KEYS))
    assert first.decoded == len(first.names)
    assert scan(folder(root, **KEYS))[0].decoded == len(first.names)  # they are seconds old, and a change may not show
    assert not [*(tmp_path / "cache").rglob("facts-*")]
    monkeypatch.setattr(imgrec.scan.file_scan, "SETTLED_NS", 0)
    scan(folder(root, **KEYS))
    again, _ = scan(folder(root, **KEYS))
    assert again.decoded == 0
    np.testing.assert_array_equal(again.facts, first.facts)
    (root / "train/cat/empty.jpg").write_bytes(encode(picture(9, 200, 150), "JPEG"))
    (root / "train/cat/icon.png").unlink()
    changed, splits = scan(folder(root, **KEYS))
    assert changed.decoded == 1
    np.testing.assert_array_equal(changed.facts, scan(folder(root, **KEYS))[0].facts)
    assert STATE_KINDS[FileState.UNREADABLE].name in {
        f.kind.name for f in find_faults(changed, splits, {"train": np.ones(2)}, ("a", "b"), SIZE)
    }
    assert changed.facts[changed.names.tolist().index(b"train/cat/empty.jpg")]["state"] == FileState.WHOLE
    assert scan(folder(root, **{**KEYS, "channels": 1, "mean": [0], "std": [1]}))[0].decoded == len(changed.names)
    for file in (tmp_path / "cache").rglob("facts-*"):
        file.write_bytes(file.read_bytes()[:-200])
    assert scan(folder(root, **KEYS))[0].decoded == len(changed.names)


def test_a_check_that_is_stopped_goes_on_where_it_was(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path))
    monkeypatch.setattr(imgrec.scan.file_scan, "SETTLED_NS", 0)
    monkeypatch.setattr(imgrec.scan.file_scan, "FILES_AT_ONCE", 10)

    def stop(what: str, count: int, of: int | None) -> None:
        if what == "decoding images":
            raise KeyboardInterrupt

    token = on_progress.set(stop)
    with pytest.raises(KeyboardInterrupt):
        scan(folder(photos, **KEYS))
    on_progress.reset(token)
    result, _ = scan(folder(photos, **KEYS))
    assert result.decoded == len(result.names) - 10


def test_a_check_that_is_killed_goes_on_where_it_was(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path))
    for name, value in {"SETTLED_NS": 0, "FILES_AT_ONCE": 10, "PORTION_S": -1.0}.items():
        monkeypatch.setattr(imgrec.scan.file_scan, name, value)
    decoded = []

    def die(what: str, count: int, of: int | None) -> None:
        decoded.append(what == "decoding images")
        if sum(decoded) == 2:
            os._exit(9)

    if not (child := os.fork()):
        on_progress.set(die)
        scan(folder(photos, **KEYS))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    portions = [*tmp_path.rglob("facts-*-portion-*")]
    assert len(portions) == 2
    portions[0].write_bytes(portions[0].read_bytes()[:-200])
    result, _ = scan(folder(photos, **KEYS))
    assert result.decoded == len(result.names) - 10
    assert not [*tmp_path.rglob("facts-*-portion-*")]
    monkeypatch.setenv("IMGREC_CACHE", "")
    fresh, _ = scan(folder(photos, **KEYS))
    np.testing.assert_array_equal(result.facts, fresh.facts)
    np.testing.assert_array_equal(result.fingerprints, fresh.fingerprints)


def test_a_file_that_cannot_be_opened_is_tried_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path))
    monkeypatch.setattr(imgrec.scan.file_scan, "SETTLED_NS", 0)

    with monkeypatch.context() as patched:
        fail_to_open(patched, b"cat/good0.jpg")
        failed, splits = scan(folder(photos, **KEYS))
        findings = find_faults(failed, splits, {"train": np.ones(2)}, ("a", "b"), SIZE)
    rows = next(finding.rows for finding in findings if finding.kind.name == "not_opened")
    assert failed.names[rows].tolist() == [b"train/cat/good0.jpg", b"test/cat/good0.jpg"]
    assert not set(rows) & {row for finding in findings for row in finding.leave_out}
    again, _ = scan(folder(photos, **KEYS))
    assert again.decoded == 2
    assert (again.facts[rows]["state"] == FileState.WHOLE).all()


def test_files_that_vanish_while_they_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain image is read a second time, which may come too late."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(4):
            Image.new("RGB", (60, 60), "white").save(tmp_path / name / f"{k}.png")
    data = folder(tmp_path, **KEYS)
    monkeypatch.setattr(ImageFiles, "open", lambda images, row, real=ImageFiles.open: _opened_once(real(images, row)))
    found, splits = scan(data)
    shutil.rmtree(tmp_path / "a")
    findings = find_faults(found, splits, {"train": np.ones(2)}, ("a", "b"), SIZE)
    assert {finding.kind.name for finding in findings} == {"blank"}


def _opened_once(file: BinaryIO) -> BinaryIO:
    os.unlink(file.name)
    return file


def test_an_example_says_why_once_and_reads_no_file_of_gibibytes(tmp_path: Path) -> None:
    """Its name is printed as letters that a terminal shows, and the reason follows it."""
    for name in ("a", "b\nc"):
        (tmp_path / name).mkdir()
        for k in range(5):
            (tmp_path / name / f"{k}\n.png").write_bytes(encode(picture(k, 60, 60), "PNG")[: 200 if k == 1 else None])
    with (tmp_path / "a/long.png").open("wb") as file:
        file.truncate(2**30 + 1)  # a hole, which takes no room on the disk
    found, splits = scan(folder(tmp_path, **KEYS))
    findings = find_faults(found, splits, {"train": np.ones(2)}, ("a", "b"), SIZE)
    said = {finding.kind.name: finding.sentences for finding in findings}
    assert said["too_large"] == ["a/long.png: 1.0 GiB"]
    assert len(said["truncated"]) == 2
    assert not any("cannot be read" in line or str(tmp_path) in line for line in said["truncated"])


# The skip list


def test_a_skip_list_leaves_images_out_and_is_a_change_of_the_data(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "skip.txt"
    decomposed = unicodedata.normalize("NFD", "test/dög/half.jpg")
    listed.write_text(f"train/cat/empty.jpg\r\n\n{decomposed}\n")
    data, whole = folder(photos, skip_list=str(listed), **KEYS), folder(photos, **KEYS)
    assert set(whole.splits.test.names.tolist()) - set(data.splits.test.names.tolist()) == {os.fsencode("dög/half.jpg")}
    assert find_changes(whole.record(), data.record()).counts["gone"] == 2
    assert whole.record().digest() != data.record().digest()


def test_a_skip_list_that_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "skip.txt"
    listed.write_text("train/cat/empty.jpg\ntrain/cat/emtpy.jpg\n")
    with raises_error(DataError, f"data.skip_list={listed}", "train/cat/emtpy.jpg", photos, "write=skip"):
        folder(photos, skip_list=str(listed), **KEYS).read()
    listed.write_text("".join(f"test/dög/{path.name}\n" for path in (photos / "test/dög").iterdir()))
    folder(photos, skip_list=str(listed), **KEYS).read()  # a class of test may be missing
    listed.write_text("".join(f"train/dög/{path.name}\n" for path in (photos / "train/dög").iterdir()))
    with raises_error(DataError, f"data.skip_list={listed}", "class dög of train", "data.skip_list=null"):
        folder(photos, skip_list=str(listed), **KEYS).read()


# The page


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 1, 40), (1, 1, 40), (3, 500, 30)])
def test_a_small_picture_is_enlarged_and_a_large_one_reduced_in_its_own_shape(shape: tuple[int, int, int]) -> None:
    with Image.open(io.BytesIO(small_jpeg(torch.full(shape, 77, dtype=torch.uint8)))) as image:
        assert image.mode == ("L" if shape[0] == 1 else "RGB")
        assert 80 <= max(image.size) <= 160
        assert (image.width > image.height, image.width < image.height) == (shape[2] > shape[1], shape[2] < shape[1])
        assert np.abs(np.asarray(image).astype(int) - 77).max() <= 1


def test_the_page_has_the_images_escaped_names_and_no_links_to_elsewhere(photos: Path) -> None:
    images = folder(photos, **KEYS).read().train
    rows = {Path(images.path(row)).name: row for row in range(len(images))}
    pictures = [thumbnail(images, rows[name]) for name in ("camera.jpg", "good0.jpg", "empty.jpg")]
    assert pictures[2] is None
    said = "<b>a&amp;b</b>.jpg: 'odd'"
    page = check_page("<i>", "2 & 3", [(ASPECT, 1234, [Example(said, pictures)]), (LARGE, 1, [Example("no image", [])])])
    shown = re.findall('src="([^"]*)"', page)
    for source, name in zip(shown, ("camera.jpg", "good0.jpg"), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        whole = Image.open(images.path(rows[name]))
        assert max(image.size) == 160
        reference = np.asarray(whole.convert("RGB").resize(image.size), dtype=float)
        assert abs(np.asarray(image, dtype=float) - reference).mean() < 6
    assert "<b>a" not in page
    assert html.unescape(re.sub("<[^>]*>", "", page)).count(said) == 1
    assert page.startswith(page_start("check"))
    assert not re.search("https?:|<script|<link", page)
    assert "1,233 more" in page


# The command


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes()) for path in files}


def test_the_command_finds_faults_and_its_skip_list_removes_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(photos)
    words = ["check", str(photos), f"data.image_size={SIZE}", "data.max_pixels=1000000", "num_workers=0"]
    assert cli.main([*words, "write=skip"]) == 3
    said = capsys.readouterr().out
    assert "train/cat/icon.png: 30x20" in said
    assert "data.skip_list=check.skip.txt" in said
    assert Path("check.html").read_text().count("<img") == 17  # with several kinds one comes several times
    content = json.loads(Path("check.json").read_text())
    assert content["faults"] == sum(finding["count"] for finding in content["findings"] if finding["is_fault"])
    found = {finding["kind"]: finding["images"] for finding in content["findings"]}
    assert set(found["truncated"]) == {f"train/cat/{n}" for n in ("half.jpg", "half.png", "no_end.jpg", "middle.jpg")} | {"test/dög/half.jpg"}  # fmt: skip
    for name in ("floats.tif", "really_png.jpg", "really_jpeg.png"):  # faults that are no reason to leave an image out
        with Path("check.skip.txt").open("a") as file:
            file.write(f"train/cat/{name}\n")
    assert cli.main([*words, "out=again.json", "data.skip_list=check.skip.txt"]) == 0
    assert "no faults" in capsys.readouterr().out
    assert tree(photos) == before


def test_a_new_skip_list_keeps_the_names_of_the_one_that_is_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("check.skip.txt").write_bytes(LIST_MARK + b"\ntrain/cat/empty.jpg\n")
    words = ["check", str(photos), f"data.image_size={SIZE}", "data.max_pixels=1000000", "num_workers=0"]
    assert cli.main([*words, "data.skip_list=check.skip.txt", "write=skip"]) == 3
    kept = read_skip_list("check.skip.txt").tolist()
    assert cli.main([*words, "out=whole.json", "write=skip"]) == 3
    assert sorted(kept) == read_skip_list("whole.skip.txt").tolist()


def test_names_that_are_no_text_are_written_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, name in (("train", b"a"), ("train", b"b\xff\x1b[31m\n"), ("val", b"a"), ("test", b"a")):
        inner = os.path.join(b"set\xff", split.encode(), name)
        os.makedirs(inner)
        for k in range(2):
            Path(os.fsdecode(inner), f"{k}.png").write_bytes(encode(picture(k + len(name) * 10, 60, 60), "PNG"))
    assert cli.main(["check", os.fsdecode(b"set\xff"), f"data.image_size={SIZE}", "num_workers=0"]) == 3
    said = capsys.readouterr().out
    assert "val has no b??[31m?" in said
    assert "\x1b" not in said
    assert "Check of set?" in Path("check.html").read_text(encoding="utf-8")


def test_classes_that_are_missing_are_all_in_the_file_and_a_few_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 40), ("val", 1), ("test", 1)):
        for k in range(count):
            (tmp_path / f"set/{split}/c{k:02}").mkdir(parents=True)
            (tmp_path / f"set/{split}/c{k:02}/a.png").write_bytes(encode(picture(k, 60, 60), "PNG"))
    assert cli.main(["check", "set", f"data.image_size={SIZE}", "num_workers=0"]) == 3
    said = capsys.readouterr().out
    assert said.count(" has no c") == SHOWN_EXAMPLES
    assert "and 73 more" in said
    assert Path("check.html").read_text().count(" has no c") == SHOWN_EXAMPLES
    kinds = {finding["kind"]: finding for finding in json.loads(Path("check.json").read_text())["findings"]}
    assert len(kinds["missing_class"]["examples"]) == 78


def test_the_check_of_another_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for k in range(8):
            (tmp_path / name / f"c{k % 2}").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"c{k % 2}/{k}.png").write_bytes(encode(picture(k, 60, 60), "PNG"))
    words = [f"data.image_size={SIZE}", "num_workers=0"]
    for _ in range(2):  # it is replaced by that of the same folder
        assert cli.main(["check", "a", *words]) in (0, 3)
    before = {name: Path(name).read_bytes() for name in ("check.json", "check.html")}
    capsys.readouterr()
    assert cli.main(["check", "b", *words]) == 2
    refusal = (f"the check of {tmp_path}/a", "out=ANOTHER.json", "overwrite=true")
    assert_refused(capsys.readouterr().err, "out=check.json", *refusal)
    assert {name: Path(name).read_bytes() for name in before} == before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # from where the same names mean other folders
    assert cli.main(["check", "../b", *words, "out=../check.json"]) == 2
    assert_refused(capsys.readouterr().err, "out=../check.json", *refusal)
    assert cli.main(["check", "../a", *words, "out=../check.json"]) in (0, 3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", f"{tmp_path}/a", *words]) in (0, 3)  # by another name of it
    assert cli.main(["check", "b", *words, "out=b.json"]) in (0, 3)
    assert cli.main(["check", "b", *words, "overwrite=true"]) in (0, 3)
    assert json.loads(Path("check.json").read_text())["root"] == f"{tmp_path}/b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["{photos}", "out={photos}/check.json"], ["out={photos}/check.json", "data.root={photos}", "out=FILE.json"]),
        (["{photos}", "out=theirs.json"], ["out=theirs.json", "overwrite=true"]),
        (["{photos}", "data.skip_list=none.txt"], ["data.skip_list=none.txt", "write=skip"]),
        (["{photos}", "out=list.json", "data.skip_list=list.skip.txt", "write=skip"], ["out=list.skip.txt", "overwrite=true"]),
        (["data=digits"], ["data", "Digits", "data=imagefolder data.root=FOLDER"]),
        (["data=table", "data.file=t.csv", "write=skip"], ["write=skip", "data=imagefolder", "Remove write=skip"]),
    ],
)  # fmt: skip
def test_what_check_refuses(
    words: list[str],
    parts: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.json").write_text("{}")
    Path("list.skip.txt").write_text("train/cat/empty.jpg\n")
    Path("t.csv").write_text("path,label\na.jpg,a\n")
    assert cli.main(["check", *(word.format(photos=photos) for word in words)]) == 2
    assert_refused(capsys.readouterr().err, *(part.format(photos=photos) for part in parts))
