"""Which folders are splits, which are classes, and which are neither."""

import os
import unicodedata
from pathlib import Path

import pytest
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_data_folder import folder, make
from torchvision import datasets

from imgrec.config.split_folders import find_split_folders, tables_in
from imgrec.data.class_balance import class_shares
from imgrec.errors import DataError
from imgrec.image_folders import SYSTEM_FOLDERS, find_images
from imgrec.inference.prediction_table import prediction_row, write_table


def fill(root: Path, *names: str, count: int = 5) -> Path:
    """ROOT/NAME/0.png and so on."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("L", (8, 8), 9 * k).save(root / name / f"{k}.png")
    return root


WORDS = {
    "train": ("train", "training", "trains", "trainings"),
    "val": ("val", "valid", "validation", "vals", "validations"),
    "test": ("test", "testing", "tests"),
}
FORMS = (
    "{}",
    "{}_set",
    "{}-set",
    "{} set",
    "{}set",
    "{}_images",
    "{}Images",
    "{}-jpg",
    "{}_data",
    "images_{}",
    "{}2017",
    "{}_dataset",
    "{}1",
)
CASES = (str.lower, str.upper, str.title)


@given(
    words=st.fixed_dictionaries({split: st.sampled_from(words) for split, words in WORDS.items()}),
    form=st.sampled_from(FORMS),
    case=st.sampled_from(CASES),
)
def test_splits_are_known_by_many_names(tmp_path_factory, words, form, case):
    root = tmp_path_factory.mktemp("root")
    names = {split: case(form.format(word)) for split, word in words.items()}
    for name in names.values():
        for label in ("a", "b"):
            (root / name / label).mkdir(parents=True)
            (root / name / label / "0.png").touch()
    assert find_split_folders(str(root)).folders == {split: str(root / name) for split, name in names.items()}


@pytest.mark.parametrize(
    "name", ["trainer", "testament", "valley", "bullet_train", "contest", "train station", "validator", "2", "set"]
)
def test_a_class_may_have_a_similar_name(tmp_path, name):
    fill(tmp_path, name, "other")
    assert find_split_folders(str(tmp_path)).folders == {"train": str(tmp_path)}
    assert folder(tmp_path).classes == tuple(sorted((name, "other")))


# What a root holds, and what the line says of it, from the root on.
REFUSED = {
    "classes beside splits": (
        ("train/a", "train/b", "test/a", "a", "b"),
        ("{root}", "train, test", "a, b", "{root}/train", "class_train"),
    ),
    "a class that is called like a split": (
        ("train", "bus", "plane"),
        ("{root}", "train", "bus, plane", "{root}/train", "class_train"),
    ),
    "a test folder beside classes": (("test", "bus", "plane"), ("{root}", "test", "bus, plane", "{root}/train", "class_test")),
    "images without classes": (
        ("train_images", "test_images"),
        (
            "{root}/train_images",
            "no class folders",
            "data=table data.file=TABLE.csv data.root={root}/train_images",
            "data.label_from='^[a-zA-Z]+'",
            "{root}/train_images/CLASS/",
        ),
    ),
    "one folder of images": (
        (".",),
        ("{root}", "no class folders", "data=table data.file=TABLE.csv data.root={root}", "data.label_from="),
    ),
    "only a test": (("test/a", "test/b"), ("{root}", "test", "no folder train", "Add")),
    "two for one split": (
        ("train/a", "train/b", "Training/a", "Training/b"),
        ("{root}", "train", "Training, train", "Remove or rename"),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, kind):
    names, parts = REFUSED[kind]
    fill(tmp_path, *names)
    with raises_error(DataError, *(part.format(root=tmp_path) for part in parts)):
        _ = folder(tmp_path).splits


@pytest.mark.parametrize("names", [("train", "test"), ("images",)])
def test_a_table_beside_images_is_named(tmp_path, names):
    """As in Kaggle's downloads."""
    fill(tmp_path, *names)
    (tmp_path / "labels.csv").write_text("id,breed\n")
    with raises_error(DataError, tmp_path, f"data=table data.file={tmp_path}/labels.csv"):
        _ = folder(tmp_path).splits


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_our_predictions_is_not_named(tmp_path, suffix):
    """As `imgrec predict RUN FOLDER out=FOLDER/answers.csv` and the test of a training leave them."""
    fill(tmp_path, "train", "test")
    row = prediction_row("a.png", [("cat", 0.5)], top_k=1)
    write_table(tmp_path / f"answers.{suffix}", [{name: [value] for name, value in row.items()}])
    write_table(tmp_path / f"errors.{suffix}", [{"path": ["a"], "true": ["b"], "predicted": ["c"], "probability": [0.5]}])
    assert tables_in(str(tmp_path)) == []
    (tmp_path / "labels.tsv").write_text("path\tclass\n")
    (tmp_path / "labels.csv").mkdir()
    assert tables_in(str(tmp_path)) == [f"{tmp_path}/labels.tsv"]


def test_a_folder_above_that_may_not_be_listed_changes_no_error(tmp_path, monkeypatch):
    fill(tmp_path / "images", "train", "test")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "images") and allowed(path, mode))
    with raises_error(DataError, tmp_path, "no class folders", "data.file=TABLE.csv"):
        _ = folder(tmp_path / "images").splits


def test_a_folder_of_images_beside_splits_is_passed_over(tmp_path):
    fill(tmp_path, "training_set/a", "training_set/b", "test_set/a", "test_set/b", "single_prediction")
    assert folder(tmp_path).counts("test").tolist() == [5, 5]


def test_a_test_folder_without_labels_is_kept_for_prediction(tmp_path):
    fill(tmp_path, "train/a", "train/b", "test")
    splits = folder(tmp_path).splits
    assert (splits.test, splits.unlabelled) == (None, str(tmp_path / "test"))


@pytest.mark.parametrize("name", sorted(SYSTEM_FOLDERS))
def test_what_systems_leave_is_neither_a_class_nor_an_image(tmp_path, name):
    root = fill(tmp_path, "a", "b", f"a/{name}", name.upper(), ".ipynb_checkpoints", "b/.AppleDouble")
    for file in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"):
        (root / "a" / file).touch()
    assert folder(root).classes == ("a", "b")
    assert find_images(str(root)) == [f"{label}/{k}.png" for label in "ab" for k in range(5)]


# Names in both forms of Unicode

CAFE, CAFE_APART = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def test_both_forms_of_a_name_are_one_class(tmp_path):
    fill(tmp_path, f"train/{CAFE}", f"train/{CAFE_APART}", "train/bar", f"val/{CAFE_APART}", "test/bar")
    data = folder(tmp_path)
    assert data.classes == ("bar", CAFE)
    assert {split: data.counts(split).tolist() for split in ("train", "val", "test")} == {
        "train": [5, 10],
        "val": [0, 5],
        "test": [5, 0],
    }
    files = data.split("train")
    assert {files.path(k) for k in range(len(files))} == {path for path, _ in datasets.ImageFolder(tmp_path / "train").samples}
    weights = {CAFE_APART: 3.0}
    assert class_shares("weighted", weights, data.counts("train"), data.classes) == [pytest.approx(1 / 4), pytest.approx(3 / 4)]


def test_a_copy_with_names_of_the_other_form_has_the_same_splits(tmp_path):
    def names(root: Path) -> dict[str, set[str]]:
        data = folder(root)
        return {
            split: {
                unicodedata.normalize("NFC", os.path.relpath(data.split(split).path(k), root))
                for k in range(len(data.split(split)))
            }
            for split in ("train", "val", "test")
        }

    for root, name in ((tmp_path / "one", CAFE), (tmp_path / "two", CAFE_APART)):
        fill(root, name, "bar", count=12)
    assert names(tmp_path / "one") == names(tmp_path / "two")
    assert folder(tmp_path / "one").record(content=()).digest() == folder(tmp_path / "two").record(content=()).digest()


def test_folders_beside_the_splits_are_named_as_they_are_not_read(tmp_path):
    for split in ("train", "val"):
        make(tmp_path / split, {"a": 3, "b": 3})
    make(tmp_path / "extra", {"a": 3, "b": 3})
    found = folder(tmp_path)
    found.record()
    assert found.beside == ["extra"]
    splitless = folder(tmp_path / "extra")
    splitless.record()
    assert splitless.beside == []


@pytest.mark.parametrize("leaves", ["nothing", "Thumbs.db", ".DS_Store", "deeper/still"])
def test_folders_that_hold_nothing_are_passed_over_and_counted(tmp_path, leaves):
    for split in ("train", "val"):
        make(tmp_path / split, {"a": 3, "b": 3})
    expected = folder(tmp_path)
    assert expected.classes == ("a", "b")
    for empty in ("train/new folder", "train/Untitled", "val/other"):
        (tmp_path / empty).mkdir()
        if leaves == "deeper/still":
            (tmp_path / empty / leaves).mkdir(parents=True)
        elif leaves != "nothing":
            (tmp_path / empty / leaves).write_bytes(b"")
    found = folder(tmp_path)
    assert found.record().digest() == expected.record().digest()
    assert {kind: count for kind, count in found.ignored.items() if kind == "empty folder"} == {"empty folder": 3}
    (tmp_path / "train/Untitled/a.heic").write_bytes(b"")  # of a class, maybe
    with raises_error(DataError, "the class folder", tmp_path / "train/Untitled", "no images", "remove"):
        folder(tmp_path).record()
