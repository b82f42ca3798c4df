"""Images that cannot be read: known before the first step, all in one pass, and no reason to train again."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from error_parts import assert_error, assert_refused, raises_error
from image_files import damaged, encode, file_kinds, picture, stored_damage
from marks import slow_but
from small_run import SMALL
from test_data_folder import PREPROCESSING, folder, make
from test_decode import claim

import imgrec.data.readable
from imgrec import cli
from imgrec.data.decode import decode
from imgrec.data.readable import find_unreadable
from imgrec.errors import DataError
from imgrec.image_folders import find_images
from imgrec.training.module import Classifier


def photos(root: Path, files: dict[str, bytes] | None = None) -> Path:
    """Three whole images of two classes in each split, and these files in train."""
    for split in ("train", "val", "test"):
        make(root / split, {"a": 3, "b": 3})
    for name, content in (files or {}).items():
        (root / "train/a" / name).write_bytes(content)
    return root


def words(root: Path, *more: str) -> list[str]:
    kept = [word for word in SMALL if not word.startswith(("data", "trainer.limit"))]
    return ["train", *kept, "data=imagefolder", "data.image_size=16", f"data.root={root}", f"runs_dir={root}/runs", *more]


def found(root: Path, *, rank: int = 0, size: int = 1, **change: object) -> set[str]:
    data = folder(root, **change)
    return {one.path for part in find_unreadable(data, rank=rank, size=size) for one in part}


def refused(root: Path) -> set[str]:
    """The files that the decoder refuses."""

    def is_refused(path: str) -> bool:
        try:
            decode(path, PREPROCESSING)
        except DataError:
            return True
        return False

    return {path for name in find_images(str(root)) if is_refused(path := str(root / name))}


@pytest.mark.parametrize("check", ["auto", "all"])
def test_a_whole_file_of_any_kind_is_none_of_them(tmp_path: Path, check: str) -> None:
    kinds = {
        f"{name.partition('.')[0]}_more.{name.partition('.')[2]}": content + b"more" for name, content in file_kinds().items()
    }
    root = photos(tmp_path, file_kinds() | kinds)
    for path in refused(root):  # that do not end where their format ends
        os.remove(path)
    assert found(root, check=check) == set()


def test_all_that_the_decoder_refuses_are_found_and_by_their_ends_those_that_are_cut(tmp_path: Path) -> None:
    chance, whole = random.Random(0), {name: encode(picture(0), form) for name, form in (("a.jpg", "JPEG"), ("a.png", "PNG"))}
    cut = {f"{number}_{name}": whole[name][: chance.randrange(len(whole[name]))] for number in range(20) for name in whole}
    junk = {"page.jpg": b"<!DOCTYPE html><html></html>", "empty.png": b"", "text.gif": b"a text"}
    root = photos(tmp_path, stored_damage() | cut | junk)
    (root / "test/b/000.jpg").write_bytes(damaged((root / "test/b/000.jpg").read_bytes(), chance)[:400])
    everything = refused(root)
    assert found(root, check="all") == everything
    assert found(root, check="all", on_bad_image="skip") == {str(root / "test/b/000.jpg")}
    by_ends = found(root)
    assert by_ends <= everything
    assert by_ends >= {str(root / "train/a" / name) for name in cut | junk if str(root / "train/a" / name) in everything}
    assert set().union(*(found(root, rank=rank, size=3) for rank in range(3))) == by_ends


def test_they_are_listed_at_once_before_the_first_step_and_one_switch_leaves_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path)
    bad = [root / name for name in ("test/a/001.jpg", "train/a/002.jpg", "train/b/000.jpg", "val/b/001.jpg")]
    for file in bad:
        file.write_bytes(file.read_bytes()[:300])
    assert cli.main(words(root)) == 2
    shown = capsys.readouterr()
    assert_refused(shown.err, bad[0], "cannot be read", "3 others", "Remove", "data.on_bad_image=skip", "imgrec check")
    for line, file in zip(shown.out.splitlines(), bad[1:], strict=True):
        assert_error(line, file, "cannot be read")
    assert list(root.glob("runs/*")) == []
    (listed := tmp_path / "listed.txt").write_text("train/a/001.jpg\n")
    assert cli.main(words(root, "data.on_bad_image=skip", f"data.skip_list={listed}")) == 0
    assert f"without those in {listed}" in " ".join(capsys.readouterr().out.split())
    result = json.loads((root / "runs/imagefolder_lenet/1/result.json").read_text())
    assert result["left_out"] == list(map(str, bad))
    assert result["test"]["count"] == 5


DAMAGE: dict[str, Callable[[Path], object]] = {
    "skip it": lambda bad: None,
    "remove it": os.remove,
    "replace it": lambda bad: picture(3).save(bad),
}
SETTINGS = {"skip it": "data.on_bad_image=skip", "remove it": "data.changed=accept", "replace it": "data.changed=accept"}


@pytest.mark.parametrize("remedy", slow_but("skip it", among=DAMAGE))
def test_a_run_that_lacks_its_test_alone_ends_with_the_new_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    """Where the test split is too large to be looked at whole, and its file is damaged in the middle."""
    monkeypatch.setattr(imgrec.data.readable, "MOST_DECODED", 0)
    root = photos(tmp_path)
    bad = root / "test/b/001.jpg"
    content = bytearray(encode(picture(0, 300, 300), "JPEG"))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    bad.write_bytes(content)
    assert cli.main(words(root)) == 2
    assert_refused(capsys.readouterr().err, bad, "cannot be read", "data.on_bad_image_eval=skip")
    rows = (root / "runs/imagefolder_lenet/1/metrics.csv").read_text()
    DAMAGE[remedy](bad)
    monkeypatch.setattr(Classifier, "training_step", lambda *_: pytest.fail("trained again"))
    assert cli.main(words(root, SETTINGS[remedy])) == 0
    result = json.loads((root / "runs/imagefolder_lenet/1/result.json").read_text())
    assert result["test"]["count"] == (6 if remedy == "replace it" else 5)
    assert (root / "runs/imagefolder_lenet/1/metrics.csv").read_text() == rows


LOOPS = {"train/c": "c", "other": "other", "train/a/deep": "../a/deep"}


@pytest.mark.parametrize("target", ["x.jpg", "nowhere.jpg"])
def test_an_image_that_a_link_has_lost_is_found(tmp_path: Path, target: str) -> None:
    root = photos(tmp_path)
    (root / "train/a/x.jpg").symlink_to(target)
    assert found(root) == {str(root / "train/a/x.jpg")}


@pytest.mark.parametrize("link", slow_but("train/c", among=LOOPS))
def test_a_link_to_itself_is_named_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str) -> None:
    root = photos(tmp_path)
    (root / link).symlink_to(LOOPS[link])
    assert cli.main(words(root)) == 2
    assert_refused(capsys.readouterr().err, root / link, "symbolic links", "remove")
    assert list(root.glob("runs/*")) == []


def test_what_is_too_large_is_found_by_its_header(tmp_path: Path) -> None:
    kinds = {name: content for name, content in claim(30_000, 30_000).items() if name != "jpeg"}
    root = photos(tmp_path, {f"{name}.{name}": content for name, content in kinds.items()})
    assert found(root) == {str(root / f"train/a/{name}.{name}") for name in kinds}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_scale_that_is_missing_is_no_bad_image(tmp_path: Path, split: str) -> None:
    root = photos(tmp_path)
    picture(0).convert("F").save(root / split / "a/float.tif")
    with raises_error(DataError, root / split / "a/float.tif", "data.scale=[BLACK,WHITE]"):
        found(root)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("where", slow_but("the class", among=["the root", "the class", "the file"]))
def test_names_that_are_not_utf8_work_from_the_training_to_the_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    other = os.fsdecode(b"\xe4\xff")
    root = photos(tmp_path / other if where == "the root" else tmp_path / "photos")
    for split in ("train", "val", "test"):
        if where == "the class":
            (root / split / "a").rename(root / split / other)
        elif where == "the file":
            (root / split / "a/000.jpg").rename(root / split / f"a/{other}.jpg")
    assert cli.main([*words(root, "logger=tensorboard", "name=r"), f"runs_dir={tmp_path}/runs"]) == 0
    run = tmp_path / "runs/r/1"
    result = json.loads((run / "result.json").read_text())
    classes = sorted(os.listdir(root / "train"))
    assert [row["name"] for row in result["test"]["per_class"]] == classes
    assert cli.main(["evaluate", str(run), "device=cpu"]) == 0
    assert json.loads((run / "evaluate_test.json").read_text())["figures"]["confusion"] == result["test"]["confusion"]
    images = sorted(str(root / "test" / name) for name in find_images(str(root / "test")))
    for suffix in (".csv", ".json", ".parquet"):
        out = tmp_path / f"out{suffix}"
        assert cli.main(["predict", str(run), str(root / "test"), f"out={out}", "device=cpu"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["path"] for row in rows] == images
    assert {row["class"] for row in rows} <= set(classes)
    assert (tmp_path / "out.csv").read_bytes().count(os.fsencode(images[0])) == 1
