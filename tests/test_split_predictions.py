"""Which images are wrong: the tables and the picture of a test hold what the network says of each image, on any number of ranks."""

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from drawings import drawn_as_for_users
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from processes import exit_codes
from untrained_run import TINY, save_untrained_run

from imgrec import cli, config
from imgrec.config.instantiate import instantiate
from imgrec.data.file_index import pack_names
from imgrec.data.folder import ImageFiles
from imgrec.data.in_memory import InMemoryImages
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.inference import split_predictions as module
from imgrec.inference.contact_sheet import CAPTION_HEIGHT, MARGIN, MOST_TILES, TILE, TITLE_HEIGHT, draw_contact_sheet
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.inference.predictor import load
from imgrec.inference.split_predictions import PredictionCollector, SplitPredictions, worst_errors, write_predictions
from imgrec.train import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pngs(run, tmp_path_factory):
    """60 images of the run's test split as files FOLDER/CLASS/NUMBER.png."""
    root = tmp_path_factory.mktemp("pngs")
    images = instantiate(load(run).checkpoint.run.data.to_node()).split("test").take(np.arange(60))
    for number, (image, label) in enumerate(zip(images.images[:, 0].numpy(), images.labels, strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{number:04d}.png")
    return root


def evaluate(*words):
    return cli.main(["evaluate", *map(str, words), "device=cpu", "num_workers=0"])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_parquet(path):
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def evaluated(run, pngs, tmp_path_factory):
    """The folder with x.json and its files, and what was printed."""
    folder, said = tmp_path_factory.mktemp("evaluated"), io.StringIO()
    with redirect_stdout(said), drawn_as_for_users():
        assert evaluate(run, f"folder={pngs}", f"out={folder}/x.json", "batch_size=16") == 0
    return folder, said.getvalue()


def test_the_tables_hold_what_the_network_says_of_each_file(run, pngs, evaluated):
    folder, said = evaluated
    rows = read_parquet(folder / "x_predictions.parquet")
    assert [row["path"] for row in rows] == sorted(map(str, pngs.glob("*/*.png")))
    recognizer = load(run, device="cpu")
    for row in rows:
        (answer,) = recognizer.predict(row["path"], top_k=10)
        chances = dict(answer.top)
        assert (row["true"], row["predicted"]) == (Path(row["path"]).parent.name, answer.class_name)
        assert row["probabilities"] == pytest.approx([chances[name] for name in recognizer.classes], abs=1e-6)
        assert row["probability"] == row["probabilities"][int(row["predicted"])]
        assert row["true_probability"] == row["probabilities"][int(row["true"])]
    errors = read_csv(folder / "x_errors.csv")
    wrong = sorted((row for row in rows if row["true"] != row["predicted"]), key=lambda row: -row["probability"])
    assert [(row["path"], row["true"], row["predicted"]) for row in errors] == [
        (row["path"], row["true"], row["predicted"]) for row in wrong
    ]
    for name in ("probability", "true_probability"):
        assert [float(row[name]) for row in errors] == pytest.approx([row[name] for row in wrong], rel=6e-6)
    figures = json.loads((folder / "x.json").read_text())["figures"]
    assert len(errors) == figures["count"] - np.trace(figures["confusion"]) > 10
    assert said.splitlines()[-1] == (
        f"{len(errors)} errors in {folder}/x_errors.csv, the worst in x_errors.png; every prediction in x_predictions.parquet"
    )


def test_the_contact_sheet_shows_the_worst_errors_in_their_order(evaluated):
    folder, _ = evaluated
    errors = read_csv(folder / "x_errors.csv")[:MOST_TILES]
    with Image.open(folder / "x_errors.png") as picture:
        sheet = picture.convert("RGB")
        assert picture.info["Software"] == "imgrec"
    for number, row in enumerate(errors):
        left, top = (
            MARGIN + number % 8 * (TILE + MARGIN),
            TITLE_HEIGHT + number // 8 * (TILE + CAPTION_HEIGHT + MARGIN),
        )
        with Image.open(row["path"]) as image:
            tile = ImageOps.pad(image.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
        assert sheet.crop((left, top, left + TILE, top + TILE)).tobytes() == tile.tobytes()
        caption = np.array(sheet.crop((left, top + TILE, left + TILE, top + TILE + CAPTION_HEIGHT)))
        assert (caption.min() < 100, caption.max()) == (True, 255)  # black on white


def test_a_caption_ends_where_the_next_begins() -> None:
    """Of wide letters: those of a name have no width of their own."""
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)

    def draw(first: str) -> np.ndarray:
        content = draw_contact_sheet(images, [first, "b"], title="", legend="", fonts=["DejaVu Sans"])
        return np.asarray(Image.open(io.BytesIO(content)))

    second = MARGIN + TILE + MARGIN
    assert np.array_equal(draw("W" * 24)[:, second:], draw("a")[:, second:])
    assert not np.array_equal(draw("W" * 24)[:, :second], draw("a")[:, :second])


@pytest.mark.parametrize(("images", "in_a_row"), [(1, 4), (3, 4), (5, 5), (8, 8), (9, 8)])
def test_a_contact_sheet_is_as_wide_as_its_images_and_its_title(images, in_a_row):
    title = "true \u2192 predicted: the first 40 of 99999 errors, the most probable first"
    content = draw_contact_sheet(
        torch.zeros(images, 1, 9, 9, dtype=torch.uint8), ["a"] * images, title=title, legend="", fonts=[]
    )
    with Image.open(io.BytesIO(content)) as sheet:
        rows = -(-images // in_a_row)
        assert sheet.size == (
            MARGIN + in_a_row * (TILE + MARGIN),
            TITLE_HEIGHT + rows * (TILE + CAPTION_HEIGHT + MARGIN),
        )
        tiles = np.array(sheet.convert("L"))[TITLE_HEIGHT : TITLE_HEIGHT + TILE]
        assert (tiles == 0).all(axis=0).sum() >= min(images, in_a_row) * (TILE - 2)
        head = np.array(sheet.convert("L"))[:TITLE_HEIGHT]
        assert head.min() < 100
        assert head[:, -MARGIN:].min() == 255, "the title is cut"


def test_a_training_writes_those_of_its_test_with_an_index_for_images_in_memory(tmp_path, capsys, drawn):
    words = ("epochs=1", "logger=none", "trainer.accelerator=cpu", "trainer.devices=1", "name=run", "id=1")
    run = config.load("train", [*TINY, f"runs_dir={tmp_path}", *words])
    result = fit(run)
    folder = tmp_path / "run" / "1"
    recognizer = load(folder, device="cpu")
    images = instantiate(run.data.to_node()).split("test")
    expected = recognizer.probabilities(images.images)
    rows = read_parquet(folder / "predictions.parquet")
    assert [row["index"] for row in rows] == list(range(len(images)))
    assert [int(row["true"]) for row in rows] == images.labels.tolist()
    assert np.array([row["probabilities"] for row in rows]) == pytest.approx(expected.numpy(), abs=1e-6)
    errors = read_csv(folder / "errors.csv")
    assert len(errors) == len(images) - np.trace(result["test"]["confusion"])
    assert f"{len(errors)} errors in {folder}/errors.csv" in capsys.readouterr().out
    with Image.open(folder / "errors.png") as picture:
        assert picture.width > TILE
    # evaluate says the same of the same weights and images
    assert evaluate(folder, "plot=none") == 0
    assert read_csv(folder / "evaluate_test_errors.csv") == errors
    assert read_parquet(folder / "evaluate_test_predictions.parquet") == rows


@pytest.mark.slow  # as tests/test_ddp.py finds of a training, and tests/test_worker_group.py of the figures
def test_ranks_write_what_one_process_writes(run, pngs, drawn, tmp_path):
    words = (run, f"folder={pngs}", "batch_size=8")
    assert evaluate(*words, f"out={tmp_path}/one.json") == 0
    assert exit_codes(3, lambda rank: evaluate(*words, f"out={tmp_path}/three.json")) == [0, 0, 0]
    for name in ("errors.csv", "errors.png", "predictions.parquet"):
        assert (tmp_path / f"three_{name}").read_bytes() == (tmp_path / f"one_{name}").read_bytes(), name


def test_skipped_images_are_in_no_table(run, pngs, tmp_path):
    first = next(pngs.glob("*/*.png"))
    (tmp_path / "some" / first.parent.name).mkdir(parents=True)
    (tmp_path / "some" / first.parent.name / "b.png").write_bytes(first.read_bytes())
    (tmp_path / "some" / first.parent.name / "a.png").write_bytes(first.read_bytes()[:-40])
    words = (run, f"folder={tmp_path}/some", f"out={tmp_path}/x.json")
    assert evaluate(*words, "data.on_bad_image_eval=skip", "plot=none") == 0
    assert [Path(row["path"]).name for row in read_parquet(tmp_path / "x_predictions.parquet")] == ["b.png"]


@pytest.mark.parametrize("name", ["errors.csv", "errors.png", "predictions.parquet"])
def test_a_file_of_someone_else_is_not_replaced(run, pngs, tmp_path, capsys, name):
    (tmp_path / f"x_{name}").write_text("mine")
    assert evaluate(run, f"folder={pngs}", f"out={tmp_path}/x.json") == 2
    assert_refused(capsys.readouterr().err, f"out={tmp_path}/x_{name}", "exists", "out=ANOTHER", "overwrite=true")
    assert (tmp_path / f"x_{name}").read_text() == "mine"


def some_predictions(predicted, probability, *, indices=None):
    chances = np.array(probability, dtype=np.float32)
    indices = np.arange(len(chances)) if indices is None else indices
    return SplitPredictions(indices, np.array(predicted), chances, chances, np.zeros((len(chances), 0), np.float32))


def test_a_path_is_that_of_the_file_also_outside_the_root(tmp_path):
    names = pack_names(["cat/1.png", "/elsewhere/2.png", "b\udcff.png"])
    images = ImageFiles(
        "photos", names, np.array([0, 0, 0]), preprocessing={}, on_bad_image="refuse", on_bad_image_eval="refuse", decoder="auto"
    )
    files = PredictionFiles(tmp_path / "e.csv", None, tmp_path / "p.parquet")
    write_predictions(files, some_predictions([0, 1, 1], [0.5, 0.6, 0.7]), images, ("cat", "dog"))
    assert [row["path"] for row in read_parquet(files.predictions)] == ["photos/cat/1.png", "/elsewhere/2.png", "photos/b?.png"]
    lines = files.errors.read_bytes().splitlines()[1:]
    assert [line.split(b",")[0] for line in lines] == [b"photos/b\xff.png", b"/elsewhere/2.png"]


def test_where_nothing_is_wrong_there_is_no_picture_of_an_earlier_test(tmp_path):
    files = PredictionFiles(tmp_path / "e.csv", tmp_path / "e.png", tmp_path / "p.parquet")
    images = InMemoryImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), np.array([0, 1]))
    write_predictions(files, some_predictions([1, 1], [0.5, 0.6]), images, ("cat", "dog"))
    assert files.sheet.exists()
    assert write_predictions(files, some_predictions([0, 1], [0.5, 0.6]), images, ("cat", "dog")).startswith("0 errors in ")
    assert not files.sheet.exists()
    assert files.errors.read_text() == "index,true,predicted,probability,true_probability\n"


CHANCES = st.sampled_from([0.25, 0.5, 1.0])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), CHANCES, CHANCES), min_size=1, max_size=30))
def test_errors_are_sorted_by_the_probability_that_was_wrong_and_then_by_the_one_that_was_right(cases):
    labels, predicted, chances, right = zip(*cases, strict=True)
    images = InMemoryImages(torch.zeros(len(cases), 1, 1, 1, dtype=torch.uint8), np.array(labels))
    expected = sorted(
        (row for row in range(len(cases)) if labels[row] != predicted[row]), key=lambda row: (-chances[row], right[row])
    )
    found = some_predictions(predicted, chances)._replace(true_probability=np.array(right))
    assert worst_errors(found, images).tolist() == expected


@pytest.mark.parametrize(("most", "kept"), [(12, 3), (11, 0)])
def test_many_images_times_classes_keep_two_probabilities_each(monkeypatch, tmp_path, most, kept):
    monkeypatch.setattr(module, "MOST_PROBABILITIES", most)
    monkeypatch.setattr(module, "ROWS", 3)
    collector = PredictionCollector(images=4, classes=3)
    logits = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 0]])
    labels = torch.tensor([0, 1, 2, 1])
    for rows in ([2, 0], [3, 1]):  # as ranks may have them
        part = logits[rows]
        collector.update(part, part.softmax(1), labels[rows], torch.tensor(rows))
    found = collector.gather(WorkerGroup())
    assert found.probabilities.shape == (4, kept)
    images = InMemoryImages(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), labels.numpy())
    write_predictions(PredictionFiles(tmp_path / "e.csv", None, tmp_path / "p.parquet"), found, images, ("a", "b", "c"))
    rows = read_parquet(tmp_path / "p.parquet")
    assert [row["predicted"] for row in rows] == ["a", "b", "c", "a"]
    chances = logits.softmax(1)
    assert [row["probability"] for row in rows] == chances.max(1).values.tolist()
    assert [row["true_probability"] for row in rows] == chances[torch.arange(4), labels].tolist()
    assert [row.get("probabilities") for row in rows] == (chances.tolist() if kept else [None] * 4)
