"""Classes and groups from the names of files: data.label_from and data.group_from of a folder."""

import json
import os
import re
from pathlib import Path

import pytest
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from small_run import SMALL
from test_data_folder import folder
from test_table import pictures

from imgrec import cli, config
from imgrec.data.datasets import ImageFolder
from imgrec.data.file_names import find_in_names
from imgrec.errors import DataError


def paths(data: ImageFolder, split: str) -> set[str]:
    images = data.split(split)
    return {os.path.relpath(images.path(k), data.root) for k in range(len(images))}


def everything(data: ImageFolder) -> dict[str, str]:
    """Path to class, of all splits."""
    found = {}
    for split in ("train", "val", "test"):
        images = data.split(split)
        found |= {os.path.relpath(images.path(k), data.root): data.classes[images.labels[k]] for k in range(len(images))}
    return found


PETS = [f"{breed}_{k}.png" for breed in ("Abyssinian", "great_pyrenees", "pug") for k in range(10)]


# What is typed, and the class of each name by means that are not ours.
@pytest.mark.parametrize(
    ("pattern", "class_of"),
    [
        (r"^(.+)_\d+", lambda name: name.rpartition("_")[0]),
        (r"^[a-zA-Z]+", lambda name: re.split(r"[^a-zA-Z]", name)[0]),
        (r"^[A-Z]|^[a-z]", lambda name: name[0]),
    ],
)
def test_the_class_is_what_the_expression_finds(tmp_path, pattern, class_of):
    data = folder(pictures(tmp_path, PETS), label_from=pattern)
    assert everything(data) == {name: class_of(name) for name in PETS}
    assert data.classes == tuple(sorted(set(map(class_of, PETS))))


@given(st.lists(st.from_regex(r"[a-z]{1,3}/[0-9]{1,2}\.png", fullmatch=True), min_size=1))
def test_the_first_group_of_the_expression_counts(names):
    assert find_in_names("label_from", re.compile("([0-9]+)"), "root", names) == [name[:-4].split("/")[1] for name in names]
    assert find_in_names("label_from", re.compile("^[a-z]+/"), "root", names) == [name.split("/")[0] + "/" for name in names]


def test_splits_are_folders_of_named_files_and_a_test_without_classes_is_kept_for_prediction(tmp_path):
    """Dogs vs. Cats of Kaggle: train/cat.0.jpg, test1/0.jpg."""
    pictures(tmp_path / "train", [f"{name}.{k}.png" for name in ("cat", "dog") for k in range(9)])
    pictures(tmp_path / "test1", [f"{k}.png" for k in range(3)])
    data = folder(tmp_path, label_from="^[a-z]+")
    assert (data.splits.test, data.splits.unlabelled) == (None, str(tmp_path / "test1"))
    assert data.classes == ("cat", "dog")
    pictures(tmp_path / "test1", ["dog.0.png"])
    with raises_error(DataError, "data.label_from=^[a-z]+", "nothing", "0.png", "3 of 4", tmp_path / "test1"):
        _ = folder(tmp_path, label_from="^[a-z]+").splits
    for k in range(3):
        (tmp_path / f"test1/{k}.png").rename(tmp_path / f"test1/cat.{k}.png")
    assert folder(tmp_path, label_from="^[a-z]+").counts("test").tolist() == [3, 1]


REFUSED = {
    "a name without a class": (["7.png"], "^[a-z]+", ("data.label_from=^[a-z]+", "7.png", "1 of 7", "{root}", "Set data.label_from")),
    "an empty match": ([], "[0-9]*", ("data.label_from=[0-9]*", "cat0.png", "6 of 6")),
    "a group that takes no part": ([], "^cat|(dog)", ("data.label_from=^cat|(dog)", "cat0.png", "3 of 6")),
    "one class": ([], "[.]png", ("data.label_from=[.]png", "only the class .png", "{root}", "Set data.label_from=")),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_an_expression_that_does_not_fit_names_a_file(tmp_path, kind):
    more, pattern, parts = REFUSED[kind]
    pictures(tmp_path, [*(f"{name}{k}.png" for name in ("cat", "dog") for k in range(3)), *more])
    with raises_error(DataError, *(part.format(root=tmp_path) for part in parts)):
        _ = folder(tmp_path, label_from=pattern).splits


def test_a_class_of_validation_that_train_lacks_names_the_file(tmp_path):
    pictures(tmp_path / "train", [f"{name}{k}.png" for name in ("cat", "dog") for k in range(3)])
    pictures(tmp_path / "val", ["cat0.png", "dig0.png"])
    with raises_error(DataError, tmp_path / "val/dig0.png", "dig", "cat, dog", "Did you mean dog?"):
        _ = folder(tmp_path, label_from="^[a-z]+").splits


# Groups


@pytest.mark.parametrize("by_name", [False, True])
def test_images_of_a_patient_are_in_one_split(tmp_path, by_name):
    slash = "_" if by_name else "/"
    names = [f"{name}{slash}p{k // 4}_{k}.png" for name in ("cat", "dog") for k in range(48)]
    data = folder(pictures(tmp_path, names), label_from="^[a-z]+" if by_name else None, group_from=r"(p\d+)_")
    patients = {split: {re.search(r"p\d+", name)[0] for name in paths(data, split)} for split in ("train", "val", "test")}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 12
    assert everything(data) == {name: name[:3] for name in names}
    assert set(paths(data, "train") | paths(data, "val") | paths(data, "test")) == set(names)


def test_a_group_in_two_folders_of_splits_is_refused(tmp_path):
    for split, patients in (("train", "ab"), ("test", "bc")):
        pictures(
            tmp_path / split, [f"{name}/{patient}_{k}.png" for name in ("cat", "dog") for patient in patients for k in range(3)]
        )
    with raises_error(DataError, "the group b", "train", "test"):
        _ = folder(tmp_path, group_from="/([a-z])_").splits


def test_a_file_without_a_group_is_named(tmp_path):
    pictures(tmp_path, [f"{name}/p{k}_0.png" for name in ("cat", "dog") for k in range(5)] + ["cat/other.png"])
    with raises_error(DataError, r"data.group_from=(p\d)_", "cat/other.png", "1 of 11", tmp_path, "Set data.group_from"):
        _ = folder(tmp_path, group_from=r"(p\d)_").splits


# Commands


@pytest.mark.parametrize("pattern", ["^[a-z]+", "[a-z]", "(cat|dog)", r"^(\w+?),", "null$|^.", "007", "a=b", "{1}"])
def test_an_expression_is_taken_as_it_is_typed(pattern):
    run = config.load("train", ["data=imagefolder", f"data.label_from={pattern}", f"data.group_from={pattern}"])
    assert (run.data.own["label_from"], run.data.own["group_from"]) == (pattern, pattern)
    assert config.load("train", ["data=imagefolder", "data.label_from=null"]).data.own["label_from"] is None


def test_named_files_are_trained_on_and_another_such_folder_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(Path("photos"), PETS)
    pictures(Path("more"), ["pug_90.png", "Abyssinian_91.png"])
    model = [word for word in SMALL if not word.startswith("data")]
    words = [r"data.label_from=^(.+)_\d+", "data.image_size=16", "trainer.limit_test_batches=1.0", "name=t", "id=1"]
    assert cli.main(["train", "photos", *model, *words, r"data.group_from=_(\d)\d?\."]) == 0
    screen = re.search(r"groups +test (\d), val (\d), train (\d)", capsys.readouterr().out)
    assert sum(map(int, screen.groups())) == 10
    test = json.loads(Path("runs/t/1/result.json").read_text())["test"]
    for more, count in (([], test["count"]), (["folder=more"], 2)):
        assert cli.main(["evaluate", "runs/t/1", "device=cpu", "num_workers=0", "plot=none", "out=e.json", *more]) == 0
        assert json.loads(Path("e.json").read_text())["figures"]["count"] == count
