"""data=table: labels, splits and groups from CSV and Parquet, and the images that the rows mean."""

import csv
import io
import json
import os
import re
import shlex
import unicodedata
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from small_run import SMALL
from test_changed_data import GRAY, KEYS

from imgrec import cli
from imgrec.data.file_index import pack_names
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData, Splits
from imgrec.data.split_record import DataRecord, find_changes
from imgrec.data.splits import split_by_name
from imgrec.data.table import ImageTable
from imgrec.data.table_file import read_columns
from imgrec.errors import ConfigError, DataError

OWN = {"path": "id", "label": "breed", "split": None, "group": None, "test_share": 0.3}
REFUSE = {"check": "auto", "decoder": "auto", "cache": "none", "on_bad_image": "refuse", "on_bad_image_eval": "refuse"}


def table_of(file: Path, root: Path | None, **change) -> ImageTable:
    return ImageTable(**{**GRAY, **KEYS, **OWN, **REFUSE, "file": str(file), "root": root and str(root), **change})


def pictures(root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (9, 9 + k % 5), dtype=np.uint8)).save(root / name)
    return root


def labels_by_name(data: ImageTable) -> dict[str, str]:
    return {
        name.decode(): data.classes[label]
        for split in ("train", "val", "test")
        if getattr(data.splits, split) is not None
        for name, label in zip(data.split(split).names.tolist(), data.split(split).labels, strict=True)
    }


DATA_PAGE = Path(__file__).parents[1] / "docs/data.md"
IDS = [f"{k:03}" for k in range(24)]
LABELS = [("cat", "dog", "eel")[k % 3] for k in range(24)]


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """train.csv with id,breed beside images/, as most of Kaggle's downloads."""
    pictures(tmp_path / "images", [f"{name}.png" for name in IDS])
    write(tmp_path / "train.csv", [["id", "breed"], *zip(IDS, LABELS, strict=True)])
    return tmp_path


def write(file: Path, rows: list, **form) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text, **form).writerows(rows)
    return file


# Reading

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")) | st.sampled_from(',;\t"\n\r'), max_size=8)


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=9),
    names=st.sampled_from([("id", "breed", "note"), ("a,b", "breed", "id"), ("x;y", "id", "breed"), ("breed", "z\t z", "id")]),
    delimiter=st.sampled_from(",;\t"),
    mark=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_csv_gives_what_was_written(tmp_path_factory, rows, names, delimiter, mark, quoting):
    """Whatever delimiter, quotes, newlines in quotes and mark at the start."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writerows([names, *rows])
    file = tmp_path_factory.mktemp("table") / "t.csv"
    file.write_bytes(text.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    table = read_columns(str(file), {"path": "id", "label": "breed"})
    for key, name in (("path", "id"), ("label", "breed")):
        column = names.index(name)
        bare = quoting == csv.QUOTE_MINIMAL  # spaces before a text without quotes are passed over
        expected = [
            row[column].lstrip(" ") if bare and not set(row[column]) & {*'"\r\n', delimiter} else row[column] for row in rows
        ]
        assert table.columns[key] == expected


def test_ids_stay_text_and_find_their_extension(kaggle):
    data = table_of(kaggle / "train.csv", kaggle / "images")
    assert labels_by_name(data) == {f"{name}.png": label for name, label in zip(IDS, LABELS, strict=True)}
    assert data.classes == ("cat", "dog", "eel")


def test_parquet_gives_the_same_splits_as_csv(kaggle):
    pq.write_table(pa.table({"id": IDS, "breed": pa.array(LABELS).dictionary_encode()}), kaggle / "train.parquet")
    of_csv, of_parquet = (table_of(kaggle / f"train.{suffix}", kaggle / "images") for suffix in ("csv", "parquet"))
    assert of_csv.record().digest() == of_parquet.record().digest()
    assert (of_parquet.counts("test") > 0).all()


@pytest.mark.parametrize("split", [None, "fold"])
def test_the_order_of_the_rows_changes_nothing(kaggle, split):
    rows = list(zip(IDS, LABELS, ["train"] * 16 + ["val"] * 4 + ["test"] * 4, strict=True))
    digests = set()
    for order in (rows, rows[::-1], rows[1::2] + rows[::2]):
        write(kaggle / "train.csv", [["id", "breed", "fold"], *order])
        digests.add(table_of(kaggle / "train.csv", kaggle / "images", split=split).record().digest())
    assert len(digests) == 1


def test_columns_of_numbers_are_text(tmp_path):
    pictures(tmp_path, [f"{k}.png" for k in range(8)])
    file = tmp_path / os.fsdecode(b"t\xe4.parquet")  # no UTF-8
    with file.open("wb") as output:
        pq.write_table(pa.table({"id": list(range(8)), "breed": [k % 2 for k in range(8)]}), output)
    assert labels_by_name(table_of(file, None)) == {f"{k}.png": str(k % 2) for k in range(8)}


def test_paths_in_every_form_mean_the_file_below_the_root(tmp_path):
    apart, composed = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFD", "NFC"))
    pictures(tmp_path / "images", ["a.png", "b/c.PNG", "b/d.tar.png", f"e/{apart}", "1.5.png", "f.png", "b/g.png"])
    typed = ["./a.png", "b/c", str(tmp_path / "images/b/d.tar"), f"e/{composed}", "1.5", "b/../f.png", "b\\g.png"]
    write(tmp_path / "t.csv", [["id", "breed"], *[[name, "xy"[k % 2]] for k, name in enumerate(typed)]])
    data = table_of(tmp_path / "t.csv", tmp_path / "images", test_share=0.1)
    found = {os.path.normpath(name) for name in labels_by_name(data)}
    assert found == {"a.png", "b/c.PNG", "b/d.tar.png", f"e/{apart}", "1.5.png", "f.png", "b/g.png"}
    for split in ("train", "val", "test"):
        assert all(os.path.isfile(data.split(split).path(k)) for k in range(len(data.split(split))))


def test_a_column_says_the_splits(kaggle):
    words = ["Training"] * 12 + ["VAL"] * 6 + ["test_set"] * 6
    write(kaggle / "train.csv", [["id", "breed", "fold"], *zip(IDS, LABELS, words, strict=True)], delimiter=";")
    data = table_of(kaggle / "train.csv", kaggle / "images", split="fold")
    sizes = {split: {name.decode() for name in data.split(split).names.tolist()} for split in ("train", "val", "test")}
    expected = {"train": IDS[:12], "val": IDS[12:18], "test": IDS[18:]}
    assert sizes == {split: {f"{name}.png" for name in names} for split, names in expected.items()}


def test_excels_unicode_text_is_read(tmp_path):
    (tmp_path / "t.txt").write_text("id\tbreed\r\n007\tcaf\u00e9\r\n", encoding="utf-16", newline="")
    assert read_columns(str(tmp_path / "t.txt"), {"path": "id", "label": "breed"}).columns == {
        "path": ["007"],
        "label": ["caf\u00e9"],
    }


# Errors name the row

GOOD = b"id,breed\n000,cat\n001,dog\n002,cat\n003,dog\n004,cat\n005,dog\n006,cat\n007,dog\n"
REFUSED = {
    "an empty label": (GOOD + b"008,\n", {}, (DataError, "train.csv, line 10", "label", "empty", "Fill it")),
    "an empty path": (GOOD + b" ,cat\n", {}, (DataError, "train.csv, line 10", "path", "empty")),
    "no such image": (GOOD + b"nine,cat\nten,dog\n", {}, (DataError, "train.csv, line 10", "images/nine", "2 of 10 rows", "Set data.root=")),
    "another extension": (GOOD.replace(b"000", b"000.JPG"), {}, (DataError, "train.csv, line 2", "images/000.JPG", "1 of 8", "There is 000.png", "set data.root=")),
    "one image twice": (GOOD + b"007.png,dog\n", {}, (DataError, "train.csv, line 10", "007.png", "train.csv, line 9", "Remove")),
    "two files of a stem": (GOOD + b"008,dog\n", {}, (DataError, "train.csv, line 10", "008", "008.gif or 008.png", "extension")),
    "too few values": (GOOD + b"008\n", {}, (DataError, "train.csv, line 10", "1 values", "2 columns")),
    "after a newline in quotes": (
        GOOD + b'"008","a\n\nb"\n\n009,\n',
        {},
        (DataError, "train.csv, line 14", "label", "empty"),
    ),
    "an open quote": (GOOD + b'"008,dog\n009,cat\n', {}, (DataError, "train.csv, line 11", "quotes")),
    "Latin-1": (GOOD + "008,b\u00e4r\n".encode("latin-1"), {}, (DataError, "train.csv, line 10", "0xe4", "UTF-8", "iconv")),
    "half of UTF-16": (b"\xff\xfei\0d\0x", {}, (DataError, "train.csv", "UTF-8", "iconv")),
    "no rows": (b"id,breed\n", {}, (DataError, "train.csv", "no rows")),
    "nothing": (b"", {}, (DataError, "train.csv", "empty", "first line", "columns")),
    "empty lines": (b"\n\r\n", {}, (DataError, "train.csv", "empty")),
    "another column": (GOOD, {"label": "bred"}, (ConfigError, "data.label=bred", "Did you mean breed?", "id, breed", "Set data.label=COLUMN")),
    "a column twice": (b"id,breed,breed\n1,2,3\n", {}, (ConfigError, "data.label=breed", "2 columns")),
    "one class": (b"id,breed\n000,cat\n001,cat\n", {}, (DataError, "data.label=breed", "only the class cat", "Set data.label=")),
    "a split of another name": (
        b"id,breed,fold\n000,cat,train\n001,dog,3\n",
        {"split": "fold"},
        (DataError, "train.csv, line 3", "3 is no split", "train, val or test", "data.split=null"),
    ),
    "no train": (b"id,breed,fold\n000,cat,test\n001,dog,val\n", {"split": "fold"}, (DataError, "train.csv", "test and val", "no rows of train")),
    "a class that train lacks": (
        b"id,breed,fold\n000,cat,train\n001,dog,train\n002,dig,test\n",
        {"split": "fold"},
        (DataError, "train.csv, line 4", "dig", "cat, dog", "Did you mean dog?"),
    ),
    "an empty group": (GOOD.replace(b"\n", b",p1\n").replace(b"breed,p1", b"breed,who") + b"008,dog, \n", {"group": "who"}, (DataError, "train.csv, line 10", "group", "empty")),
    "one group of a class": (
        b"id,breed,who\n000,cat,p1\n001,cat,p1\n002,dog,p2\n003,dog,p3\n",
        {"group": "who"},
        (DataError, "class cat", "1 group", "data.test_share=0.3", "2 of each class"),
    ),
    "a group in two splits": (
        b"id,breed,fold,who\n000,cat,train,p1\n001,dog,train,p2\n002,cat,val,p3\n003,dog,test,p2\n",
        {"split": "fold", "group": "who"},
        (DataError, "the group p2", "train", "test"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_table_that_cannot_be_used_names_the_row(kaggle, monkeypatch, kind):
    content, change, (error, *parts) = REFUSED[kind]
    monkeypatch.chdir(kaggle)
    pictures(kaggle / "images", ["008.gif", "008.png"] if kind == "two files of a stem" else [])
    (kaggle / "train.csv").write_bytes(content)
    with raises_error(error, *parts):
        _ = table_of(Path("train.csv"), Path("images"), **change).splits


LONG = "n" * 40_000


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (f"id,breed,fold\n000,cat,{LONG}\n", "line 2"),
        (f"id,breed,fold\n{LONG},cat,train\n001,dog,train\n", "line 2"),
        (f"id,breed,fold\n000,cat,train\n001,dog,train\n002,{LONG},test\n", "line 4"),
        (f"id,breed,fold\n000,{LONG},train\n", "data.label=breed"),
        (f"id,breed,{LONG}\n000,cat,train\n", "data.split=fold"),
        (f"id,breed,fold,who\n000,cat,train,{LONG}\n001,dog,train,2\n003,cat,test,{LONG}\n004,dog,val,3\n", "the group"),
    ],
)
def test_long_values_are_quoted_by_their_ends(kaggle, content, place):
    (kaggle / "train.csv").write_text(content)
    group = "who" if "who" in content else None
    with pytest.raises((DataError, ConfigError)) as caught:
        _ = table_of(kaggle / "train.csv", kaggle / "images", split="fold", group=group).splits
    assert place in str(caught.value)
    assert "nnn..." in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_lines_before_the_header_may_be_empty(kaggle):
    whole = labels_by_name(table_of(kaggle / "train.csv", kaggle / "images"))
    (kaggle / "train.csv").write_bytes(b"\r\n\n" + (kaggle / "train.csv").read_bytes())
    assert labels_by_name(table_of(kaggle / "train.csv", kaggle / "images")) == whole


@pytest.mark.parametrize(("large", "said"), slow_but((60, True), among=[(3, False), (60, True)]))
def test_a_share_of_groups_that_ends_far_from_the_wanted_one_is_said(tmp_path, monkeypatch, capsys, large, said):
    """A group of many images, which lies in one of the splits whole."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"{kind}{k}_{n}", kind, f"{kind}{k}") for kind in "ab" for k in range(30) for n in range(large if k == 0 else 3)]
    pictures(tmp_path, [f"{name}.png" for name, _, _ in rows])
    write(tmp_path / "t.csv", [["id", "breed", "who"], *rows])
    model = [word for word in SMALL if not word.startswith("data")]
    words = ["data=table", "data.file=t.csv", "data.path=id", "data.label=breed", "data.group=who", "data.image_size=16"]
    assert cli.main(["train", *model, *words, "data.split_seed=3", "data.test_share=0.3", "data.val_share=0.3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shares")]
    assert bool(lines) == said
    for line in lines:
        assert_error(line, "shares", "of the images", "data.split_seed")


def test_paths_that_begin_with_the_name_of_the_root_say_which_root_is_meant(kaggle, monkeypatch):
    monkeypatch.chdir(kaggle)
    write(
        kaggle / "train.csv", [["id", "breed"], *[(f"images/{name}.png", label) for name, label in zip(IDS, LABELS, strict=True)]]
    )
    with raises_error(DataError, "train.csv, line 2", "images/images/000.png", "24 of 24", "Set data.root=., or"):
        _ = table_of(Path("train.csv"), Path("images")).splits
    write(kaggle / "train.csv", [["id", "breed"], *zip(IDS, LABELS, strict=True)])
    with raises_error(DataError, "train.csv, line 2", "000", "24 of 24", "Set data.root=./images, or"):
        _ = table_of(Path("train.csv"), Path(".")).splits
    write(
        kaggle / "train.csv", [["id", "breed"], *[(f"images/{name}.png", label) for name, label in zip(IDS, LABELS, strict=True)]]
    )
    assert len(labels_by_name(table_of(Path("train.csv"), None))) == 24


def test_a_null_of_parquet_names_its_row(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "breed": ["cat", None]}), tmp_path / "t.parquet")
    with raises_error(DataError, f"{tmp_path}/t.parquet, row 2", "label", "empty"):
        _ = table_of(tmp_path / "t.parquet", None).splits


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", GOOD], ids=["empty", "cut", "CSV"])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with raises_error(DataError, f"data.file={tmp_path}/t.parquet", "cannot be read"):
        _ = table_of(tmp_path / "t.parquet", None).splits


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["csv", "parquet"]),
    edits=st.lists(
        st.tuples(
            st.integers(0, 2000), st.integers(0, 9), st.binary(max_size=6) | st.sampled_from([b'"', b"\xff", b",;", b"\r"])
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_damaged_table_is_read_or_refused_in_one_line(tmp_path_factory, kind, edits):
    file = tmp_path_factory.mktemp("damaged") / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"id": IDS, "breed": LABELS}), file)
    content = bytearray(GOOD if kind == "csv" else file.read_bytes())
    for place, removed, added in edits:
        content[place % len(content) : place % len(content) + removed] = added
    file.write_bytes(content)
    with suppress(DataError, ConfigError):
        table = read_columns(str(file), {"path": "id", "label": "breed"})
        assert len(table.columns["path"]) == len(table.columns["label"]) == len(table.lines) > 0


def test_texts_of_parquet_that_are_not_utf8_are_refused(tmp_path):
    raw = pa.array([b"b\xe4r", b"cat"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ["a", "b"], "breed": raw}), tmp_path / "t.parquet")
    with raises_error(DataError, f"data.file={tmp_path}/t.parquet", "cannot be read"):
        _ = table_of(tmp_path / "t.parquet", None).splits


# Groups


class Grouped(ImageData):
    """Files that exist by name alone, in groups, cut into three splits."""

    def __init__(self, files: dict[str, tuple[int, str]]) -> None:
        super().__init__(**GRAY, **KEYS)
        self.files = files

    def read(self) -> Splits:
        labels, groups = zip(*self.files.values(), strict=True)
        images = ImageFiles("", pack_names(self.files), np.array(labels), preprocessing=GRAY, groups=pack_names(groups), **REFUSE)
        train, test = self.cut(images, ("a", "b"), "test", 0.3)
        return Splits(("a", "b"), train=train, val=None, test=test)


def homes(data: Grouped) -> dict[str, str]:
    """File to split; each file is in one."""
    found = {name.decode(): split for split in ("train", "val", "test") for name in data.split(split).names.tolist()}
    assert found.keys() == data.files.keys()
    return found


FILES = st.dictionaries(
    st.integers(0, 99).map("{}.png".format), st.tuples(st.integers(0, 1), st.integers(0, 9).map("p{}".format)), max_size=40
)
BASE = {f"base{k}.png": (k % 2, f"q{k}") for k in range(12)}  # enough groups of one class for each split


@settings(max_examples=50)
@given(files=FILES)
def test_a_group_is_in_one_split_and_each_split_has_images(files):
    data = Grouped(files | BASE)
    found = homes(data)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for name, (_, group) in data.files.items():
        splits_of[group].add(found[name])
    assert {len(splits) for splits in splits_of.values()} == {1}
    assert (data.counts("train") > 0).all()
    assert set(found.values()) == {"train", "val", "test"}


@settings(max_examples=50)
@given(before=FILES, after=FILES)
def test_with_the_record_of_a_run_a_file_stays_and_new_ones_follow_their_group(before, after):
    data = Grouped(before | BASE)
    then = DataRecord.unpack(data.classes, data.record(content=()).pack())
    later = Grouped({name: before.get(name, of) for name, of in after.items()} | BASE)  # a file keeps its group
    was, now = homes(data), homes(later.following(then))
    assert {name: now[name] for name in was.keys() & now.keys()} == {name: was[name] for name in was.keys() & now.keys()}
    home_of = {data.files[name][1]: split for name, split in was.items()}
    kept = {data.files[name][1] for name in was.keys() & now.keys()}
    assert all(now[name] == home_of[group] for name, (_, group) in later.files.items() if group in kept)


@settings(max_examples=20)
@given(st.data())
def test_without_a_record_a_group_stays_when_files_come_and_go(data):
    """As long as no class of a split depends on a single group."""
    before = {f"{k}.png": (k % 2, f"p{k // 6}") for k in range(900)}
    removed = data.draw(st.sets(st.sampled_from(sorted(before)), max_size=40))
    added = data.draw(
        st.dictionaries(
            st.integers(900, 999).map("{}.png".format), st.tuples(st.integers(0, 1), st.integers(0, 200).map("p{}".format))
        )
    )
    was, now = homes(Grouped(before)), homes(Grouped({name: of for name, of in before.items() if name not in removed} | added))
    assert {name: now[name] for name in before.keys() - removed} == {name: was[name] for name in before.keys() - removed}
    home_of = {before[name][1]: split for name, split in was.items()}
    assert all(now[name] == home_of[group] for name, (_, group) in added.items() if group in home_of)


def test_groups_that_are_single_images_are_cut_like_names():
    names = pack_names(f"{k}.png" for k in range(500))
    labels = np.arange(500) % 7
    alone = split_by_name(names, labels, 0.2, seed=3, stream=1)
    assert (alone == split_by_name(names[::-1], labels, 0.2, seed=3, stream=1, groups=names)).all()
    few = split_by_name(names[:20], labels[:20], 0.01, seed=3, stream=1)
    assert (few == split_by_name(names[:20], labels[:20], 0.01, seed=3, stream=1, groups=names[:20])).all()
    assert np.bincount(labels[:20][few]).tolist() == [1] * 7


def test_groups_of_a_table_are_the_columns(kaggle):
    people = [f"p{k // 2}" for k in range(24)]
    write(kaggle / "train.csv", [["id", "breed", "who"], *zip(IDS, LABELS, people, strict=True)])
    data = table_of(kaggle / "train.csv", kaggle / "images", group="who")
    homes = {people[int(name[:3])]: split for split in ("train", "val", "test") for name in data.split(split).names.tolist()}
    for split in ("train", "val", "test"):
        assert all(homes[people[int(name[:3])]] == split for name in data.split(split).names.tolist())


# Commands


def imgrec(*words: object) -> int:
    return cli.main([*map(str, words)])


def test_a_table_is_trained_on_evaluated_and_predicted(kaggle, monkeypatch, capsys):
    monkeypatch.chdir(kaggle)
    table = ["data=table", "data.file=train.csv", "data.path=id", "data.label=breed", "data.test_share=0.3", "data.image_size=16"]
    model = [word for word in SMALL if not word.startswith("data")]
    assert imgrec("train", "images", *table, *model, "trainer.limit_test_batches=1.0", "name=t", "id=1") == 0
    test = json.loads(Path("runs/t/1/result.json").read_text())["test"]
    assert [row["name"] for row in test["per_class"]] == ["cat", "dog", "eel"]

    write(kaggle / "train.csv", [["id", "breed"], *list(zip(IDS, LABELS, strict=True))[:20]])  # the last four are gone
    assert imgrec("evaluate", "runs/t/1", "device=cpu", "num_workers=0", "plot=none") == 0
    assert "gone" in capsys.readouterr().out
    write(Path("moved.csv"), [["id", "breed"], *zip(IDS, LABELS, strict=True)])
    (kaggle / "images").rename("pictures")
    assert (
        imgrec(
            "evaluate",
            "runs/t/1",
            "device=cpu",
            "num_workers=0",
            "plot=none",
            "data.root=pictures",
            "data.file=moved.csv",
            "by=breed",
        )
        == 0
    )
    figures = json.loads(Path("runs/t/1/evaluate_test.json").read_text())
    recalls = {row["name"]: (row["support"], row["recall"]) for row in test["per_class"]}
    assert {row["name"]: (row["images"], row["accuracy"]) for row in figures["slices"]} == recalls
    assert (figures["figures"], figures["changed_images"]) == (test, {})
    for word, lost in (("data.root=images", "images"), ("data.file=no.csv", "no.csv")):
        capsys.readouterr()
        assert imgrec("evaluate", "runs/t/1", "device=cpu", "data.root=pictures", "data.file=moved.csv", word) == 2
        assert_refused(capsys.readouterr().err, f"{word.partition('=')[0]}={lost}", "Set", word.partition("=")[0])
    for name, label in zip(IDS, LABELS, strict=True):
        (kaggle / "other" / label).mkdir(parents=True, exist_ok=True)
        os.link(f"pictures/{name}.png", f"other/{label}/{name}.png")
    assert imgrec("evaluate", "runs/t/1", "device=cpu", "num_workers=0", "plot=none", "folder=other") == 0
    assert json.loads(Path("runs/t/1/evaluate_other.json").read_text())["figures"]["count"] == 24
    assert imgrec("predict", "runs/t/1", "pictures", "out=answers.csv", "device=cpu", "num_workers=0") == 0
    assert Path("answers.csv").read_text().count("\n") == 25


def test_a_label_that_was_changed_is_noticed(kaggle):
    data = table_of(kaggle / "train.csv", kaggle / "images")
    then = data.record()
    write(kaggle / "train.csv", [["id", "breed"], *zip(IDS, [LABELS[1], *LABELS[1:]], strict=True)])
    changes = find_changes(then, table_of(kaggle / "train.csv", kaggle / "images").following(then).record())
    assert changes.counts == {"of another class": 1}
    assert "of another class 000.png in" in str(changes)


@pytest.mark.slow
def test_the_commands_of_the_page_about_data_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"^```\n(imgrec train data=table data.file=dogs.*?)^```$", DATA_PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    pictures(Path("dogs/images"), [f"{name}.jpg" for name in IDS])
    pictures(Path("dogs/test"), ["900.jpg", "901.jpg"])
    write(Path("dogs/train.csv"), [["id", "breed"], *zip(IDS, LABELS, strict=True)])
    weights = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *args, **kwargs: weights)
    small = {"train": ["epochs=1", "data.image_size=64", "trainer.accelerator=cpu", "trainer.devices=1", "num_workers=0"]}
    for _, name, *words in map(shlex.split, block.splitlines()):
        assert imgrec(name, *words, *small.get(name, ["device=cpu", "num_workers=0"])) == 0
    with open("predictions.csv", newline="") as text:
        assert {row["path"]: row["class"] in LABELS for row in csv.DictReader(text)} == {
            f"dogs/test/90{k}.jpg": True for k in (0, 1)
        }


@pytest.mark.parametrize("path", ["ant\0/000.png", "ant/00\0.png"])
def test_a_path_with_a_zero_byte_names_its_row(tmp_path, path):
    pictures(tmp_path, ["ant/000.png", "bee/001.png"])
    pq.write_table(pa.table({"id": ["ant/000.png", path, "bee/001.png"], "breed": ["ant", "ant", "bee"]}), tmp_path / "t.parquet")
    with raises_error(DataError, str(tmp_path / "t.parquet"), "row 2", "no image", "data.root=FOLDER"):
        table_of(tmp_path / "t.parquet", tmp_path).splits  # noqa: B018
