"""imgrec check suspects=true: wrong labels that were planted are the first of its list, and no image is in it that the network learned."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from error_parts import assert_refused
from image_files import encode, picture
from untrained_run import CLASSES, save_untrained_run

import imgrec.inference.held_out
from imgrec import cli
from imgrec.config.compose import compose_config
from imgrec.config.schema import DataConfig
from imgrec.data.datasets import Digits, ImageFolder
from imgrec.data.image_set import ImageSet
from imgrec.data.splits import stratified
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.inference.held_out import find_predicted
from imgrec.inference.measure import Measured
from imgrec.inference.prediction_table import write_table
from imgrec.inference.predictor import Predictor
from imgrec.inference.split_predictions import SplitPredictions
from imgrec.inference.stored_predictions import read_predictions
from imgrec.terminal import percent


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["check", *words])
    return code, *capsys.readouterr()


def answers(labels: np.ndarray, classes: int, wrong: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table of a test whose network is sure of each label but for those of `wrong`, which it takes for the next class."""
    rows, said = np.arange(len(labels)), labels.copy()
    said[wrong] = (said[wrong] + 1) % classes
    chances = np.full((len(labels), classes), 0.05 / (classes - 1), dtype=np.float32)
    chances[rows, said] = 0.95
    return {"probability": chances[rows, said], "true_probability": chances[rows, labels], "probabilities": chances, "said": said}


@pytest.fixture
def digits_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A run on the digits whose test has ten wrong labels, by its table, and the rows of these."""
    monkeypatch.chdir(tmp_path)
    run = save_untrained_run(Path("run"))
    config = load_checkpoint(run).run.data.to_node()
    config.pop("_target_")
    labels = Digits(**config).split("test").labels
    wrong = np.arange(7, 357, 35)
    columns = answers(labels, 10, wrong)
    names = np.array(CLASSES, dtype=object)
    table = {"index": np.arange(len(labels)), "true": names[labels].tolist(), "predicted": names[columns.pop("said")].tolist()}
    write_table(run / "predictions.parquet", [table | columns])
    return run, wrong


def test_planted_labels_of_a_set_in_memory(
    digits_run: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, wrong = digits_run

    def measure(predictor: Predictor, images: ImageSet, *args: Any, **keys: Any) -> Measured:
        said = answers(images.labels, 10, np.array([5]))
        found = (said["said"], said["probability"], said["true_probability"], said["probabilities"])
        return Measured(None, SplitPredictions(np.arange(len(images)), *found), [])  # type: ignore[arg-type]

    monkeypatch.setattr(imgrec.inference.held_out, "measure_here", measure)
    code, said, _ = say(capsys, f"ckpt={run}", "suspects=true")
    assert code == 0
    (found,) = json.loads(Path("check.json").read_text())["findings"]
    assert (found["kind"], found["is_fault"]) == ("label_suspect", False)
    assert (found["looked_at"], found["not_looked_at"]) == ({"val": 144, "test": 360}, 1293)
    assert {suspect["image"] for suspect in found["suspects"]} == {f"test {row}" for row in wrong.tolist()} | {"val 5"}
    assert [suspect["quality"] for suspect in found["suspects"]] == sorted(suspect["quality"] for suspect in found["suspects"])
    assert {(int(suspect["predicted"]) - int(suspect["label"])) % 10 for suspect in found["suspects"]} == {1}
    assert "1,293 images of train" in said
    first = found["suspects"][0]
    assert f"{first['image']}: labelled {first['label']} ({percent(first['quality'])})" in said
    page = Path("check.html").read_text()
    assert page.count("data:image/jpeg") == min(60, found["count"])
    assert "No faults" not in page  # no file was looked at


def test_a_table_of_other_images_is_read_by_name(tmp_path: Path) -> None:
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "there" / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "there" / name / f"{i}.png").write_bytes(encode(picture(10 * k + i, 40, 40), "PNG"))
    (tmp_path / "there/cat/0.png").rename(tmp_path / "there/cat" / os.fsdecode(b"\xe4.png"))
    config = DataConfig.from_node(
        compose_config("train", ["data=imagefolder", f"data.root={tmp_path / 'there'}"])["data"]
    ).to_node()
    config.pop("_target_")
    images = ImageFolder(**config).split("train")
    names = list(map(os.fsdecode, images.names.tolist()))
    chances = np.linspace(0.5, 1, len(names)).astype(np.float32)
    columns = {
        "path": [f"old/{name}" for name in reversed(names)] + ["old/cat/gone.png"],
        "true": [name.partition("/")[0] for name in reversed(names)] + ["cat"],
        "predicted": ["dog"] * (len(names) + 1),
        "probability": np.append(chances, chances[:1]),
        "true_probability": np.append(chances, chances[:1]),
    }
    columns["true"][0] = "cat" if columns["true"][0] == "dog" else "dog"  # it has another class now
    write_table(tmp_path / "table.parquet", [columns])
    stored = read_predictions(tmp_path / "table.parquet", ("cat", "dog"), fix="", probabilities=True)
    found, missing = find_predicted(stored, images, then="old", now=str(tmp_path / "there"))
    assert missing == 2
    assert found.indices.tolist() == list(range(len(names) - 1))[::-1]
    np.testing.assert_array_equal(found.probability, chances[1:])
    assert found.probabilities.shape == (len(names) - 1, 0)


@pytest.mark.slow
def test_folders_are_checked_whole_and_found_where_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMGREC_CACHE", "")
    for k, name in enumerate(("cat", "dog")):
        for split, count in (("train", 6), ("val", 3), ("test", 12)):
            Path("old", split, name).mkdir(parents=True)
            for i in range(count):
                Path("old", split, name, f"{i}.png").write_bytes(encode(picture(100 * k + i + 20 * len(split), 120, 100), "PNG"))
    words = ("data=imagefolder", "data.root=old", "data.image_size=48", "data.channels=3")
    run = save_untrained_run(Path("run"), *words, classes=("cat", "dog"))
    labels, paths = np.repeat([0, 1], 12), [f"old/test/{name}/{i}.png" for name in ("cat", "dog") for i in range(12)]
    columns, names = answers(labels, 2, np.array([3, 20])), np.array(["cat", "dog"], dtype=object)
    table = {"path": paths, "true": names[labels].tolist(), "predicted": names[columns.pop("said")].tolist()}
    write_table(run / "predictions.parquet", [table | columns])
    wanted = [f"test/{path}" for path in ("cat/3.png", "dog/8.png")]
    for words in ((), ("data.root=new", "overwrite=true")):  # check.json is that of another folder
        if words:
            Path("old").rename("new")
            Path("new/train/cat/broken.png").write_bytes(b"")
        code, said, _ = say(capsys, "ckpt=run", "suspects=true", "num_workers=0", *words)
        assert code == (3 if words else 0)
        content = json.loads(Path("check.json").read_text())
        found = {finding["kind"]: finding for finding in content["findings"]}
        tested = [suspect["image"] for suspect in found["label_suspect"]["suspects"] if suspect["split"] == "test"]
        assert sorted(tested) == wanted
        assert ("unreadable" in found) == bool(words)
        assert ("leak_worth" in content) == (not words)
        assert "the 12 images of train" in said if not words else "the 13 images of train" in said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("suspects=true",), ("suspects=true", "ckpt=runs/NAME/ID")),
        (("suspects=true", "ckpt=run", "data=mnist"), ("data=mnist", "suspects=true", "data.root=FOLDER")),
        (("suspects=true", "ckpt=run", "data.image_size=9"), ("data.image_size=9", "suspects=true", "data.root=FOLDER")),
        (("suspects=true", "ckpt=run"), ("run", "runs/NAME/ID")),
    ],
)
def test_what_cannot_be_checked_is_refused(
    words: tuple[str, ...],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = say(capsys, *words)
    assert code == 2
    assert_refused(error, *parts)


@pytest.mark.slow
def test_most_labels_that_were_planted_in_the_digits_are_listed_and_few_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits, chance = sklearn.datasets.load_digits(), np.random.default_rng(1)
    right = digits.target.copy()
    rows = chance.permutation(len(right))[:90]  # 5%
    digits.target[rows] = (digits.target[rows] + chance.integers(1, 10, len(rows))) % 10
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    words = ("data=digits", "model=simple_cnn", "epochs=8", "logger=none", "trainer.accelerator=cpu")
    assert cli.main(["train", "folds=3", *words]) == 0
    code, said, _ = say(capsys, "ckpt=runs/digits_simple_cnn/folds_1", "suspects=true")
    assert code == 0
    assert "not looked at" not in said
    parts = stratified(digits.target, 0.2, seed=0, classes=CLASSES, key="data.test_share")
    wrong = {
        f"{split} {row}"
        for split, part in zip(("train", "test"), parts, strict=True)
        for row in np.flatnonzero(digits.target[part] != right[part]).tolist()
    }
    (found,) = json.loads(Path("check.json").read_text())["findings"]
    listed = [image in wrong for image in found["images"]]
    assert len(wrong) == 90
    assert all(listed[:25])
    assert np.mean(listed) > 0.9
    assert sum(listed) > 0.6 * 90
