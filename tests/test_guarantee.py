"""predict coverage= and risk=: the sets and answers of the fitted rules, in each format, and the same for the same image."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from error_parts import assert_refused, raises_error
from PIL import Image
from sklearn.datasets import load_digits
from untrained_run import CLASSES, save_untrained_run

import imgrec
from imgrec import cli
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.errors import CheckpointError, ConfigError
from imgrec.inference.calibration import Calibration
from imgrec.inference.checkpoint import load_checkpoint, weights_hash
from imgrec.inference.guarantee import find_guarantee
from imgrec.inference.predictor import load

IMAGES, VALIDATION = 25, 400


def save_record(run, record):
    content = load_checkpoint(run).content
    losses = {"log_loss_before": 1.0, "log_loss_after": 1.0}
    stored = Calibration(temperature=1.0, **losses, images=len(record.label), validation=record, weights=weights_hash(content))
    content["imgrec"]["calibration"] = stored.pack()
    torch.save(content, run / "checkpoints" / "best.ckpt")
    return run


def pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Of images whose labels are as probable as the network says, and some of each class."""
    plain = load(save_untrained_run(tmp_path_factory.mktemp("plain")))
    probabilities = plain.probabilities(torch.from_numpy(pictures(1, VALIDATION))[:, None]).numpy()
    drawn = np.random.default_rng(2).random((VALIDATION, 1))
    labels = (drawn > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=9)
    labels[:100] = np.arange(100) % 10
    return ValidationRecord.of(probabilities, labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory, record):
    return save_record(save_untrained_run(tmp_path_factory.mktemp("run")), record)


@pytest.fixture(scope="module")
def sure(tmp_path_factory, record):
    """The network of a run that is right where it is surer than in the third that it is least sure of."""
    right = record.probability > np.quantile(record.probability, 1 / 3)
    record = record._replace(label=np.where(right, record.predicted, (record.predicted + 1) % 10).astype(np.int32))
    return save_record(save_untrained_run(tmp_path_factory.mktemp("sure")), record)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number, pixels in enumerate(pictures(0, IMAGES)):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "99.png").write_bytes(b"no image")
    return folder


def predict(run, files, out, *words):
    assert cli.main(["predict", str(run), str(files), f"out={out}", "num_workers=0", "device=cpu", *words]) == 0
    return out


def test_lac_holds_the_classes_above_the_threshold_in_each_format(run, record, files, tmp_path, capsys):
    ascending = np.sort(record.true_probability)
    threshold = ascending[int(0.1 * (VALIDATION + 1)) - 1]  # of 400 the 361st from above
    probabilities = load(run).probabilities(torch.from_numpy(pictures(0, IMAGES))[:, None]).numpy()
    expected = [[CLASSES[label] for label in np.argsort(-row, kind="stable") if row[label] >= threshold] for row in probabilities]
    assert len(set(map(len, expected))) > 1
    words = ("coverage=0.9", "top_k=1")
    rows = json.loads(predict(run, files, tmp_path / "a.json", *words).read_text())
    assert list(rows[0]) == ["path", "class", "probability", "set", "error"]
    assert [row["set"] for row in rows] == [*expected, None]
    assert "classes in a set" in capsys.readouterr().out
    with predict(run, files, tmp_path / "a.csv", *words).open() as file:
        assert [row["set"] for row in csv.DictReader(file)] == [*("; ".join(names) for names in expected), ""]
    table = pyarrow.parquet.read_table(predict(run, files, tmp_path / "a.parquet", *words))
    assert table["set"].to_pylist() == [*expected, None]


@pytest.mark.parametrize("sets", ["aps", "raps"])
def test_an_image_has_the_same_set_in_any_batch_and_from_any_source(run, files, tmp_path, sets):
    predictor, images = load(run), pictures(0, IMAGES)
    found = [each.classes for each in predictor.predict(list(images), coverage=0.8, sets=sets)]
    rows = json.loads(predict(run, files, tmp_path / "a.json", "coverage=0.8", f"sets={sets}", "batch_size=7").read_text())
    assert [row["set"] for row in rows[:IMAGES]] == found
    turned = predictor.predict(list(images[::-1]), coverage=0.8, sets=sets, batch_size=3)
    assert [each.classes for each in turned][::-1] == found
    ranked = predictor.predict(list(images), top_k=10)
    assert all([name for name, _ in each.top][: len(names)] == names for each, names in zip(ranked, found, strict=True))
    twice = predictor.predict(np.stack([images[0]] * 4), coverage=0.8, sets=sets)
    assert [each.classes for each in twice] == [found[0]] * 4
    guarantee = find_guarantee(
        predictor.checkpoint, coverage=0.8, risk=None, sets=sets, sets_by_class=False, calibrated=True, tta=None
    )
    batch = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)  # in any layout in memory
    answers = predictor.probabilities(batch[:, :1])
    assert guarantee.class_sets(batch, answers) == guarantee.class_sets(batch.contiguous(), answers)


def test_by_class_a_class_that_is_harder_has_a_lower_threshold(run, record):
    images = list(pictures(3, 100))
    predictor = load(run)
    both = [predictor.predict(images, coverage=0.8, sets_by_class=by_class) for by_class in (False, True)]
    counts = [[sum(CLASSES[c] in each.classes for each in found) for c in range(10)] for found in both]
    quantiles = [np.quantile(record.true_probability[record.label == c], 0.2) for c in range(10)]
    hardest, easiest = int(np.argmin(quantiles)), int(np.argmax(quantiles))
    assert counts[1][hardest] >= counts[0][hardest]
    assert counts[1][easiest] <= counts[0][easiest]
    assert counts[0] != counts[1]


def test_where_the_network_is_unsure_it_answers_none_of_these(sure, files, tmp_path, capsys):
    rows = json.loads(predict(sure, files, tmp_path / "a.json", "risk=0.05").read_text())
    answers = [(row["probability"], row["answer"], row["class"]) for row in rows[:-1]]
    assert {answer == name for _, answer, name in answers} == {True, False}
    least = min(probability for probability, answer, name in answers if answer == name)
    assert all(answer == (name if probability >= least else "none of these") for probability, answer, name in answers)
    assert rows[-1]["answer"] is None
    assert f"of {IMAGES} answered" in capsys.readouterr().out
    predictions = load(sure).predict(list(pictures(0, IMAGES)), risk=0.05)
    assert [each.answered for each in predictions] == [answer == name for _, answer, name in answers]


REFUSED = {
    "both": (["coverage=0.9", "risk=0.1"], ["coverage=0.9", "risk=0.1", "Set one"]),
    "coverage 1": (["coverage=1"], ["coverage=1", "more than 0 and less than 1"]),
    "percent": (["coverage=95"], ["coverage=95", "Set coverage=0.95"]),
    "risk 0": (["risk=0"], ["risk=0", "more than 0 and less than 1"]),
    "a method": (["coverage=0.9", "sets=lca"], ["sets=lca", "Did you mean lac"]),
    "too few": (["coverage=0.999"], ["coverage=0.999", "999", "400", "Set coverage=0.997", "data.val_share"]),
    "too few of a class": (["coverage=0.99", "sets_by_class=true"], ["coverage=0.99", "99", "of class", "data.val_share"]),
    "not calibrated": (["coverage=0.9", "calibrated=false"], ["calibrated=false", "coverage=0.9", "Leave calibrated out"]),
    "risk too small": (["risk=0.001"], ["risk=0.001", "2,995", "400", "data.val_share"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_validation_images_cannot_guarantee_is_refused(sure, files, tmp_path, capsys, case):
    words, parts = REFUSED[case]
    assert cli.main(["predict", str(sure), str(files), f"out={tmp_path / 'a.csv'}", *words]) == 2
    assert_refused(capsys.readouterr().err, *parts)
    assert not (tmp_path / "a.csv").exists()


def test_what_excludes_one_another_is_refused_before_the_checkpoint_is_looked_for(tmp_path, capsys):
    for words, parts in ((["tta=flip"], ["tta=flip", "risk=0.1"]), (["coverage=0.9"], ["coverage=0.9", "risk=0.1"])):
        assert cli.main(["predict", str(tmp_path / "none.ckpt"), str(tmp_path), "risk=0.1", *words]) == 2
        assert_refused(capsys.readouterr().err, *parts)


def test_a_checkpoint_without_a_record_is_refused(tmp_path):
    predictor = load(save_untrained_run(tmp_path))
    for words in ({"coverage": 0.9}, {"risk": 0.1}):
        key, value = next(iter(words.items()))
        with raises_error(CheckpointError, f"{key}={value}", "best.ckpt", "Train again", "data.val_share"):
            predictor.predict([], **words)


def test_weights_that_were_changed_have_no_guarantee_of_those_before(tmp_path, record):
    run = save_record(save_untrained_run(tmp_path / "run"), record)
    assert load(run).predict([], coverage=0.9) == []
    content = load_checkpoint(run).content
    next(iter(content["state_dict"].values())).mul_(1.01)
    torch.save(content, file := run / "checkpoints/best.ckpt")
    with raises_error(CheckpointError, file, "weights", "temperature", "calibrated=false"):
        load(run)
    with raises_error(CheckpointError, file, "weights", "validation images"):
        find_guarantee(load_checkpoint(run), coverage=0.9, risk=None, sets="lac", sets_by_class=False, calibrated=True, tta=None)
    assert load(run, calibrated=False).temperature == 1


@pytest.mark.parametrize("words", [{"coverage": 2}, {"coverage": "high"}, {"risk": True}, {"coverage": 0.9, "sets": "all"}])
def test_python_refuses_what_the_command_line_refuses(run, words):
    key = list(words)[-1]
    with raises_error(ConfigError, f"{key}={str(words[key]).lower()}"):
        load(run).predict([], **words)


@pytest.mark.slow
def test_the_checkpoint_of_a_training_guarantees_a_coverage(tmp_path):
    """By the record of validation images that the training stored."""
    result = imgrec.fit(
        data="digits", model="simple_cnn", epochs=3, optim="adam", num_workers=0, logger="none", runs_dir=str(tmp_path)
    )
    images, labels = load_digits(return_X_y=True)
    pictures = np.round(images / 16 * 255).astype(np.uint8).reshape(-1, 8, 8)
    found = result.load().predict(list(pictures), coverage=0.95)
    covered = np.mean([str(label) in each.classes for each, label in zip(found, labels, strict=True)])
    assert covered > 0.93  # of all images, those of the training too: their sets hold their class more often
    assert np.mean([len(each.classes) for each in found]) < 3
