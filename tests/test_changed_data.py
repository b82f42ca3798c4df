"""Data that changes between two starts, or between ranks: noticed, named, and no training image ever in a test split."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from processes import exit_codes, run_ranks
from resumed_runs import patch_call
from small_run import SMALL
from test_data_folder import folder

from imgrec import cli, config
from imgrec.config.schema import RunConfig
from imgrec.data import counter_rng
from imgrec.data.datasets import Fake
from imgrec.data.file_index import pack_names
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData, Splits
from imgrec.data.split_record import DataRecord, SplitRecord, find_changes
from imgrec.data.splits import split_by_name
from imgrec.errors import CheckpointError, DataError
from imgrec.inference.checkpoint import load_checkpoint, read_checkpoint, read_record
from imgrec.train import fit
from imgrec.training.step_boundary import StepBoundary

GRAY = {
    "image_size": 8,
    "channels": 1,
    "mean": [0.5],
    "std": [0.25],
    "resize": "squash",
    "crop_share": 1.0,
    "interpolation": "bilinear",
}
GRAY |= {"max_pixels": 10**8, "scale": None}
KEYS = {"val_share": 0.3, "split_seed": 0, "changed": "refuse", "num_classes": None}


def make_pictures(root: Path, counts: dict[str, int]) -> Path:
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * k + i).integers(0, 256, (9 + i, 10), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03}.png")
    return root


# The cut by name

NAMES = st.sets(st.text("abc\u00e9\u3042/._-0123456789", min_size=1, max_size=20), min_size=1, max_size=60)


@given(names=NAMES, seed=st.integers(0, 2**32 - 1), stream=st.integers(0, 9))
def test_the_hash_of_a_name_is_splitmix64_over_its_words(names, seed, stream):
    packed = pack_names(sorted(names))
    chosen = split_by_name(packed, np.arange(len(packed)) * 0, 0.5, seed=seed, stream=stream)
    hashes = []
    for name in sorted(names):
        state, raw = counter_rng.splitmix64(counter_rng.splitmix64(seed, 0) + stream, 0), os.fsencode(name)
        for start in range(0, len(raw), 8):
            state = counter_rng.splitmix64(state ^ int.from_bytes(raw[start : start + 8], "little"), 0)
        hashes.append(state / 2**64)
    expected = np.array(hashes) < 0.5
    order = np.argsort(hashes)
    expected[order[-2:]], expected[order[0]] = False, True
    if len(names) > 1:
        assert chosen.tolist() == expected.tolist()


LABELLED = st.tuples(st.integers(0, 2), st.text("ab\u00e9/", min_size=1, max_size=9).map(str.encode))


@given(rows=st.lists(LABELLED, min_size=1), row=st.integers(0, 99), changed=LABELLED)
def test_a_digest_is_another_where_a_label_or_a_name_is(rows, row, changed):
    def digest(rows: list[tuple[int, bytes]], classes: tuple[str, ...] = ("a", "b", "c")) -> str:
        labels, names = (np.array(part) for part in zip(*rows, strict=True))
        content = np.zeros((0, 1), dtype=np.int64)
        return DataRecord(classes, {"train": SplitRecord(labels, names, content)}).digest()

    others = rows.copy()
    others[row % len(rows)] = changed
    assert (digest(rows) == digest(others)) == (rows == others)
    assert digest(rows) != digest([*rows, changed])
    assert digest(rows) != digest(rows, ("a", "c", "b"))


def test_a_class_has_its_share():
    names = pack_names(f"{k % 20}/{k:06}.jpg" for k in range(200_000))
    chosen = split_by_name(names, np.arange(200_000) % 20, 0.2, seed=0, stream=0)
    shares = np.bincount(np.arange(200_000)[chosen] % 20) / 10_000
    assert np.abs(shares - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 10_000)  # of a binomial distribution


class Named(ImageData):
    """Files that exist by name alone, cut into three splits."""

    def __init__(self, files: set[str]) -> None:
        super().__init__(**GRAY, **KEYS)
        self.files = sorted(files)

    def read(self) -> Splits:
        classes = ("a", "b")
        labels = np.array([classes.index(name[0]) for name in self.files])
        images = ImageFiles(
            "",
            pack_names(self.files),
            labels,
            preprocessing=GRAY,
            on_bad_image="refuse",
            on_bad_image_eval="refuse",
            decoder="auto",
        )
        train, test = self.cut(images, classes, "test", 0.3)
        return Splits(classes, train=train, val=None, test=test)


def homes(data: Named) -> dict[str, str]:
    """File to split; each file is in one."""
    found = {name.decode(): split for split in ("train", "val", "test") for name in data.split(split).names.tolist()}
    assert len(found) == len(data.files)
    return found


FILES = st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 40)).map(lambda file: f"{file[0]}/{file[1]:03}"))
BASE = {f"{name}/{k:03}" for name in "ab" for k in range(4)}


@settings(max_examples=40)
@given(before=FILES, after=FILES)
def test_no_image_changes_its_split_with_the_record_of_a_run(before, after):
    """Whatever was added and removed: what evaluate and a resumed run see."""
    data = Named(before | BASE)
    then = DataRecord.unpack(data.classes, data.record(content=()).pack())
    was, now = homes(data), homes(Named(after | BASE).following(then))
    common = was.keys() & now.keys()
    assert {name: now[name] for name in common} == {name: was[name] for name in common}


@settings(max_examples=20)
@given(st.data())
def test_without_a_record_an_image_stays_too(data):
    """As long as no class of a split depends on a single image."""
    before = {f"{name}/{k:03}" for name in "ab" for k in range(150)}
    removed = data.draw(st.sets(st.sampled_from(sorted(before)), max_size=40))
    added = data.draw(st.sets(st.integers(150, 999).map("a/{:03}".format)))
    was, now = homes(Named(before)), homes(Named(before - removed | added))
    assert {name: was[name] for name in before - removed} == {name: now[name] for name in before - removed}


@settings(max_examples=40)
@given(before=FILES, after=FILES)
def test_changes_are_the_set_differences(before, after):
    before, after = before | BASE, after | BASE
    then = Named(before).record(content=())
    changes = find_changes(then, Named(after).following(then).record(content=()))
    assert changes.counts == {
        what: len(files) for what, files in {"new": after - before, "gone": before - after}.items() if files
    }


def test_other_pixels_in_memory_are_noticed():
    def made(noise: float) -> DataRecord:
        return Fake(train_samples=30, test_samples=6, noise=noise, **GRAY, **{**KEYS, "num_classes": 3}).record()

    assert not find_changes(made(0.1), made(0.1)).counts
    assert find_changes(made(0.1), made(0.2)).counts == {"replaced": 36}


def test_a_record_that_imgrec_did_not_write_is_refused():
    packed = Named({"a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "b/3", "b/4"}).record(content=()).pack()
    for content in (packed[:-9], packed[:0], torch.zeros(40, dtype=torch.uint8), torch.ones(3)):
        with raises_error(CheckpointError, "x.ckpt", "record of the images", "Name a checkpoint"):
            read_record({"classes": ["a", "b"], "data": content}, Path("x.ckpt"))
    with raises_error(CheckpointError, "x.ckpt", "do not fit"):
        read_record({"classes": ["a"], "data": packed}, Path("x.ckpt"))


# A run that is resumed

RUN = (
    *SMALL[5:],
    "data=imagefolder",
    "data.image_size=16",
    "data.channels=1",
    "data.mean=[0.5]",
    "data.std=[0.25]",
    "data.val_share=0.3",
    "data.test_share=0.3",
    "epochs=3",
    "trainer.save_every_steps=1",
    "trainer.limit_train_batches=1.0",
    "name=r",
    "id=a",
)


def run_config(folder: Path, *words: str) -> RunConfig:
    return config.load("train", [*RUN, f"data.root={folder}/photos", f"runs_dir={folder}/runs", *words])


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder with photos/ and an unfinished run that was killed at its fourth step, in its first epoch."""
    folder = tmp_path_factory.mktemp("killed")
    make_pictures(folder / "photos", {"ant": 13, "bee": 12, "cat": 13})

    def end(boundary: StepBoundary, *_: object) -> None:
        boundary.writer.wait()
        os._exit(9)

    def work(rank: int) -> None:
        patch_call(4, StepBoundary, "on_before_optimizer_step", end)
        fit(run_config(folder), quiet=True)

    assert exit_codes(1, work) == [9]
    shutil.copytree(folder, folder / "kept")
    return folder


@pytest.fixture
def unfinished(killed) -> Path:
    """The same as it was killed."""
    for name in ("photos", "runs"):
        shutil.rmtree(killed / name)
        shutil.copytree(killed / "kept" / name, killed / name)
    return killed


def swap(root: Path) -> None:
    (root / "ant").rename(root / "x")
    (root / "cat").rename(root / "ant")
    (root / "x").rename(root / "cat")


def add_val(root: Path) -> None:
    root.rename(root.with_name("all"))
    root.mkdir()
    root.with_name("all").rename(root / "train")
    shutil.copytree(root / "train", root / "val")


def replace(root: Path) -> None:
    for k in range(8):
        shutil.copy(root / f"bee/{k + 1:03}.png", root / f"ant/{k:03}.png")


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "one added": (lambda root: shutil.copy(root / "ant/005.png", root / "ant/000a.png"), ("1 new", "new ant/000a.png")),
    "one removed": (lambda root: (root / "ant/003.png").unlink(), ("1 gone", "gone ant/003.png")),
    "one renamed": (lambda root: (root / "ant/003.png").rename(root / "ant/zzz.png"), ("1 new, 1 gone",)),
    "eight replaced": (replace, ("8 replaced", "replaced ant/", "replaced ant/", "replaced ant/", "...")),
    "two classes swap their names": (swap, ("replaced ant/",)),
    "a val folder appears": (add_val, ("gone",)),
}
OTHER_CLASSES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a class renamed": (lambda root: (root / "ant").rename(root / "zebra"), ("3 classes", "new: zebra", "gone: ant")),
    "a class added": (lambda root: shutil.copytree(root / "cat", root / "dog"), ("4 classes", "3", "new: dog")),
    "a class removed": (lambda root: shutil.rmtree(root / "cat"), ("2 classes", "3", "gone: cat")),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_images_are_noticed(unfinished, kind):
    change, parts = CHANGES[kind]
    change(unfinished / "photos")
    with raises_error(DataError, "the images have changed", *parts, "data.changed=accept", "resume=false"):
        fit(run_config(unfinished), quiet=True)
    assert (unfinished / "runs/r/a/checkpoints/last.ckpt").exists()  # it can still be resumed


@pytest.mark.parametrize("answer", ["refuse", "accept"])
@pytest.mark.parametrize("kind", OTHER_CLASSES)
def test_other_classes_are_refused(unfinished, kind, answer):
    change, parts = OTHER_CLASSES[kind]
    change(unfinished / "photos")
    with raises_error(DataError, "the data has", *parts, "resume=false"):
        fit(run_config(unfinished, f"data.changed={answer}"), quiet=True)


def test_accepted_changes_keep_what_is_left_in_its_split(unfinished):
    root, last = unfinished / "photos", unfinished / "runs/r/a/checkpoints/last.ckpt"
    was = load_checkpoint(last).record()
    for k in range(0, 10, 2):
        (root / f"ant/{k:03}.png").unlink()
        shutil.copy(root / "bee/002.png", root / f"bee/new{k}.png")
    run = run_config(unfinished, "data.changed=accept")
    assert exit_codes(1, lambda rank: fit(run, quiet=True)) == [0]
    now = load_checkpoint(last).record()
    assert now.classes == was.classes
    for split, before in was.splits.items():
        for other in set(was.splits) - {split}:
            assert not set(before.names.tolist()) & set(now.splits[other].names.tolist())
    counts = find_changes(was, now).counts
    assert counts == {"new": 5, "gone": 5}
    steps = -(-len(now.splits["train"].names) // 4)
    assert read_checkpoint(last)["global_step"] in (3 * steps, 3 * steps + 1)  # the first epoch may have been longer
    assert fit(run_config(unfinished), quiet=True)["status"] == "finished"  # what was accepted once is asked no more


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_that_were_trained_on_are_not_accepted_in_a_split_that_measures(unfinished, split):
    root = unfinished / "photos"
    names = [
        os.fsdecode(name)
        for name in load_checkpoint(unfinished / "runs/r/a/checkpoints/last.ckpt").record().splits["train"].names
    ]
    root.rename(root.with_name("all"))
    root.mkdir()
    root.with_name("all").rename(root / "train")
    for name in names[::3]:  # of each class
        (root / split / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).rename(root / split / name)
    with raises_error(DataError, f"{len(names[::3])} images of {split}", *names[:9:3], "...", "resume=false"):
        fit(run_config(unfinished, "data.changed=accept"), quiet=True)


@pytest.mark.slow
def test_a_run_resumes_within_an_epoch_that_has_become_shorter(unfinished):
    root, last = unfinished / "photos", unfinished / "runs/r/a/checkpoints/last.ckpt"
    done = read_checkpoint(last)["resume"]["position"]["done"]
    train = [os.fsdecode(name) for name in load_checkpoint(last).record().splits["train"].names]
    for name in train[4:]:  # one step an epoch is left
        (root / name).unlink()
    assert done == 3
    for name in train[-2:]:
        shutil.copy(root.parent / "kept/photos" / name, root / name)
    run = run_config(unfinished, "data.changed=accept")
    assert exit_codes(1, lambda rank: fit(run, quiet=True)) == [0]
    steps = -(-len(load_checkpoint(last).record().splits["train"].names) // 4)
    assert read_checkpoint(last)["global_step"] == done + 2 * steps


# Evaluation


def evaluate(ckpt: Path, *words: object) -> tuple[int, dict]:
    code = cli.main(
        [
            "evaluate",
            f"ckpt={ckpt}",
            *map(str, words),
            "device=cpu",
            "num_workers=0",
            "plot=none",
            f"out={ckpt}/e.json",
            "overwrite=true",
        ]
    )
    return code, json.loads((ckpt / "e.json").read_text()) if code == 0 else {}


@pytest.fixture(scope="module")
def trained(killed) -> Path:
    folder = killed / "trained"
    shutil.copytree(killed / "kept/photos", folder / "photos")
    assert exit_codes(1, lambda rank: fit(run_config(folder), quiet=True)) == [0]
    return folder


def test_evaluate_measures_what_the_run_had_in_the_split(trained, tmp_path, capsys):
    shutil.copytree(trained / "photos", photos := tmp_path / "photos")
    run = trained / "runs/r/a"
    code, before = evaluate(run)
    assert (code, before["changed_images"]) == (0, {})
    assert before["figures"] == json.loads((run / "result.json").read_text())["test"]

    test = [os.fsdecode(name) for name in load_checkpoint(run).record().splits["test"].names]
    for k in range(20):  # some of them would be cut off for the test
        shutil.copy(photos / "bee/002.png", photos / f"bee/{k}new.png")
    code, after = evaluate(run, f"data.root={photos}")
    assert (code, after["changed_images"], after["figures"]) == (0, {"new": 20}, before["figures"])
    assert_error(next(line for line in capsys.readouterr().out.splitlines() if "20 new" in line), "the images have changed")

    (photos / test[0]).unlink()
    shutil.copy(photos / "bee/001.png", photos / test[1])
    code, after = evaluate(run, f"data.root={photos}")
    assert (code, after["changed_images"]) == (0, {"new": 20, "gone": 1, "replaced": 1})
    assert after["figures"]["count"] == before["figures"]["count"] - 1


def test_the_split_for_validation_stays_beside_a_test_folder_with_the_same_names(tmp_path):
    for name in ("train", "test"):
        make_pictures(tmp_path / name, {"a": 9, "b": 9})
    data = folder(tmp_path)
    then = data.record(content=())
    for name in ("a", "b"):
        shutil.copy(tmp_path / f"test/{name}/000.png", tmp_path / f"train/{name}/000new.png")
    now = folder(tmp_path).following(then).record(content=())
    assert set(find_changes(then, now).counts) == {"new"}
    assert set(then.splits["val"].names.tolist()) <= set(now.splits["val"].names.tolist())


@pytest.mark.slow
def test_a_test_folder_that_the_run_did_not_have_is_measured_whole(tmp_path):
    make_pictures(tmp_path / "photos/train", {"ant": 6, "bee": 6})
    assert exit_codes(1, lambda rank: fit(run_config(tmp_path), quiet=True)) == [0]
    make_pictures(tmp_path / "photos/test", {"ant": 2, "bee": 1})
    code, found = evaluate(tmp_path / "runs/r/a")
    assert (code, found["changed_images"], found["figures"]["count"]) == (0, {}, 3)


def test_evaluate_refuses_a_folder_without_the_images_of_the_run(trained, tmp_path, capsys):
    make_pictures(tmp_path, {"ant": 4, "bee": 4, "cat": 4})
    for file in tmp_path.glob("*/*.png"):
        file.rename(file.with_name(f"other{file.name}"))
    assert evaluate(trained / "runs/r/a", f"data.root={tmp_path}")[0] == 2
    assert_refused(capsys.readouterr().err, tmp_path, "none", "test", "data.root=FOLDER", "folder=DIR")


# Ranks

OTHER_FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "fewer": (lambda root: (root / "ant/003.png").unlink(), ("1 gone", "gone ant/003.png")),
    "as many, other names": (lambda root: (root / "ant/003.png").rename(root / "ant/zzz.png"), ("1 new, 1 gone",)),
    "another class": (lambda root: (root / "cat").rename(root / "dog"), ("new: dog", "gone: cat")),
}


@pytest.mark.parametrize("kind", slow_but("fewer", among=OTHER_FILES))
def test_ranks_that_see_other_files_are_refused(tmp_path, kind):
    change, parts = OTHER_FILES[kind]
    for rank in range(2):
        make_pictures(tmp_path / f"{rank}/photos", {"ant": 6, "bee": 6, "cat": 6})
    change(tmp_path / "1/photos")

    def refusal(rank: int) -> str:
        os.chdir(tmp_path / str(rank))
        run = config.load("train", [*RUN, "data.root=photos", f"runs_dir={tmp_path}/runs", "trainer.devices=auto"])
        with pytest.raises(DataError) as error:
            fit(run, quiet=True)
        return str(error.value)

    for said in run_ranks(2, refusal):
        assert_error(said, "rank 1", "rank 0", *parts, "data.root=FOLDER")
    assert not list((tmp_path / "runs").iterdir())
