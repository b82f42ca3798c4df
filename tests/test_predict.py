"""predict: rows in the order given, the same in every format, whatever the batches; and a bad file costs its own row only."""

import csv
import json
import os
import re
import struct
import zlib

import numpy as np
import pyarrow.parquet
import pytest
from error_parts import assert_error, assert_refused
from PIL import Image
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.errors import DataError
from imgrec.files import IMAGE_EXTENSIONS
from imgrec.inference.predictor import load
from imgrec.paths import expand_files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """25 images of several kinds and sizes."""
    root = tmp_path_factory.mktemp("images")
    made = np.random.default_rng(0)
    for number in range(25):
        mode, suffix = [("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("L", "bmp"), ("RGB", "webp")][number % 5]
        height, width = made.integers(8, 30, 2)
        pixels = made.integers(0, 256, (height, width, {"L": 1, "RGB": 3, "RGBA": 4}[mode]), dtype=np.uint8).squeeze()
        folder = root / ("b" if number < 10 else "a/deep")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels, mode=None).save(folder / f"{number:02d}.{suffix}")
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_text("no image")
    return root


@pytest.fixture
def bad(tmp_path, images):
    """A folder with a whole image between three files that are none."""
    whole = (images / "b" / "01.jpg").read_bytes()
    (tmp_path / "bad").mkdir()
    for name, content in (
        ("a_cut.jpg", whole[: len(whole) // 2]),
        ("b_whole.jpg", whole),
        ("c_empty.png", b""),
        ("d_text.png", b"hello"),
    ):
        (tmp_path / "bad" / name).write_bytes(content)
    return tmp_path / "bad"


def predict(*words):
    return cli.main(["predict", *map(str, words), "device=cpu"])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_what_the_network_says_of_each_file(run, images, tmp_path, capsys):
    assert predict(f"ckpt={run}", f"files={images}", f"out={tmp_path}/p.csv", "batch_size=8", "top_k=2") == 0
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    files = sorted(str(file) for file in images.rglob("*") if file.suffix in IMAGE_EXTENSIONS and ".hidden" not in file.parts)
    assert [row["path"] for row in rows] == files
    recognizer = load(run, device="cpu")
    for row in rows:  # one by one: the batch an image was in changes nothing
        (answer,) = recognizer.predict(row["path"], top_k=2)
        told = [(row["class"], float(row["probability"])), (row["class_2"], float(row["probability_2"]))]
        assert [name for name, _ in told] == [name for name, _ in answer.top]
        assert [chance for _, chance in told] == pytest.approx([chance for _, chance in answer.top], rel=6e-6)  # six digits
        assert row["error"] == ""
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"25 files in {tmp_path}/p.csv"
    assert "\x1b" not in said


@pytest.mark.parametrize("words", [("batch_size=1",), ("batch_size=25",), ("batch_size=7", "num_workers=2")])
def test_batches_and_workers_change_nothing(run, images, tmp_path, words):
    assert predict(f"ckpt={run}", f"files={images}", f"out={tmp_path}/all.json", "top_k=10") == 0
    assert predict(f"ckpt={run}", f"files={images}", f"out={tmp_path}/some.json", "top_k=10", *words) == 0
    whole, parts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "some"))
    assert [row["path"] for row in whole] == [row["path"] for row in parts]
    for one, other in zip(whole, parts, strict=True):
        assert one["class"] == other["class"]
        assert other["probability"] == pytest.approx(one["probability"], abs=2e-6)


def test_every_format_holds_the_same(run, images, bad, tmp_path):
    found = []
    for suffix in ("csv", "json", "parquet"):
        assert predict(f"ckpt={run}", f"files=[{bad},{images}/b]", f"out={tmp_path}/p.{suffix}") == 0
    for row in read_csv(tmp_path / "p.csv"):
        numbers = {
            name: float(value) if name.startswith("probability") and value else value or None for name, value in row.items()
        }
        found.append(numbers)
    assert json.loads((tmp_path / "p.json").read_text()) == found
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist() == found
    assert sum(row["error"] is None for row in found) == 11


def test_a_bad_file_has_its_reason_in_its_row(run, bad, tmp_path, capsys):
    assert predict(f"ckpt={run}", f"files={bad}", f"out={tmp_path}/p.csv") == 0
    rows = read_csv(tmp_path / "p.csv")
    assert [row["path"].rpartition("/")[2] for row in rows] == ["a_cut.jpg", "b_whole.jpg", "c_empty.png", "d_text.png"]
    assert "truncated" in rows[0]["error"].lower()
    assert rows[1]["error"] == ""
    assert "empty" in rows[2]["error"]
    assert "format" in rows[3]["error"]
    assert [row["class"] == "" for row in rows] == [True, False, True, True]
    assert " 3 of them " in (last := capsys.readouterr().out.splitlines()[-1])
    assert "column 'error'" in last


def test_where_no_file_can_be_read_the_exit_code_says_so(run, bad, tmp_path, capsys):
    assert predict(f"ckpt={run}", f"files={bad}/c_empty.png", f"out={tmp_path}/p.csv") == 2
    assert_refused(capsys.readouterr().err, "none of 1 file", f"{bad}/c_empty.png", "empty", f"{tmp_path}/p.csv", "image files")
    assert len(read_csv(tmp_path / "p.csv")) == 1


def test_a_name_with_letters_of_no_width_is_printed_whole(tmp_path, capsys):
    run = save_untrained_run(tmp_path / "run", classes=("\u202ecat", "\u202edog"))
    Image.new("L", (8, 8)).save(tmp_path / "\u202e\x1b.png")
    assert predict(run, tmp_path / "\u202e\x1b.png", f"out={tmp_path}/p.csv") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.match(r"file class probability then \S+/\?\?.png \?(cat|dog) 0.\d+ \?(cat|dog) 0.", said), said


def test_a_decoder_prints_nothing(run, images, tmp_path, capfd):
    """libpng writes its warnings of odd chunks to the process's stderr, in the middle of the table."""
    png = (images / "b" / "00.png").read_bytes()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    odd = chunk(b"gAMA", b"\0\0\0\0") + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")) + chunk(b"tRNS", b"\0\0\0")
    files = {"odd": png[:33] + odd + png[33:], "cut": png[:-30], "wrong": png[:40] + b"\xff" + png[41:]}
    for name, content in files.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    assert predict(run, *(tmp_path / f"{name}.png" for name in files), images / "b" / "01.jpg", f"out={tmp_path}/p.csv") == 0
    said = capfd.readouterr()
    assert (said.err, "libpng" in said.out) == ("", False)


def test_there_are_no_more_columns_than_classes(tmp_path, images):
    run = save_untrained_run(tmp_path / "run", classes=("cat", "dog"))
    assert predict(f"ckpt={run}", f"files={images}/b", f"out={tmp_path}/p.csv", "top_k=5") == 0
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    assert all(float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=2e-6) for row in rows)


def test_a_file_of_someone_else_is_not_replaced(run, images, tmp_path, capsys):
    for suffix, content in (("csv", "path,label\n"), ("json", '[{"path": 1}]'), ("parquet", "PAR1")):
        out = tmp_path / f"mine.{suffix}"
        out.write_text(content)
        assert predict(f"ckpt={run}", f"files={images}/b", f"out={out}") == 2
        assert_refused(capsys.readouterr().err, f"out={out}", "exists", "out=ANOTHER", "overwrite=true")
        assert out.read_text() == content
        assert predict(f"ckpt={run}", f"files={images}/b", f"out={out}", "overwrite=true") == 0
        first = out.read_bytes()
        assert predict(f"ckpt={run}", f"files={images}/b", f"out={out}") == 0  # its own it replaces
        assert out.read_bytes() == first


def test_what_is_named_comes_in_the_order_given_and_once(images, monkeypatch):
    monkeypatch.chdir(images)
    deep = [f"a/deep/{name}" for name in sorted(os.listdir("a/deep"))]
    first = sorted(os.listdir("b"))
    assert expand_files("a") == deep  # the text file is left out
    assert expand_files(["b/03.bmp", "b", "a/notes.txt"]) == [
        "b/03.bmp",
        *(f"b/{name}" for name in first if name != "03.bmp"),
        "a/notes.txt",
    ]
    assert expand_files("b/*.bmp") == ["b/03.bmp", "b/08.bmp"]
    assert expand_files("**/*.webp") == [*(f for f in deep if f.endswith("webp")), "b/04.webp", "b/09.webp"]
    assert expand_files("*") == [*deep, *(f"b/{name}" for name in first)]  # folders alone: the images in them
    with pytest.raises(DataError, match=r"\*\.tga"):
        expand_files("*.tga")
    with pytest.raises(DataError, match=r"images=\[\]"):
        expand_files([], "images")


def test_a_name_that_is_no_utf8_keeps_its_bytes(run, images, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(name, "wb") as file:
        file.write((images / "b" / "01.jpg").read_bytes())
    for suffix in ("csv", "json", "parquet"):
        assert predict(f"ckpt={run}", f"files={tmp_path}/caf*", f"out={tmp_path}/p.{suffix}") == 0
    assert name in (tmp_path / "p.csv").read_bytes()
    assert os.fsencode(json.loads((tmp_path / "p.json").read_text())[0]["path"]) == name
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()[0]["path"] == f"{tmp_path}/caf?.jpg"


def test_max_pixels_is_that_of_the_run_or_the_given_one(tmp_path, images):
    run, image = save_untrained_run(tmp_path / "run", "data.max_pixels=50"), images / "b" / "00.png"
    with Image.open(image) as opened:
        pixels = opened.width * opened.height
    (expected,) = load(run, device="cpu").predict(np.array(Image.open(image)))  # an array has no limit
    for limit, words in ((50, []), (pixels - 1, [f"max_pixels={pixels - 1}"])):
        assert predict(run, image, f"out={tmp_path}/p.csv", *words) == 2
        assert_error(
            read_csv(tmp_path / "p.csv")[0]["error"], "cannot be read", f"data.max_pixels={limit}", f"max_pixels={pixels}"
        )
    assert predict(run, image, f"out={tmp_path}/p.csv", f"max_pixels={pixels}") == 0
    (row,) = read_csv(tmp_path / "p.csv")
    assert (row["class"], float(row["probability"])) == (expected.class_name, pytest.approx(expected.probability, abs=1e-6))
