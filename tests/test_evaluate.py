"""evaluate gives the figures of the training's own test, scikit-learn's for the same predictions, and the same from files as from memory."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import assert_refused
from PIL import Image
from processes import LIMIT_S
from rich.console import Console
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    confusion_matrix,
    matthews_corrcoef,
    roc_auc_score,
)
from torchvision.transforms import v2
from untrained_run import save_untrained_run

import imgrec
from imgrec import cli, config
from imgrec.config.instantiate import instantiate
from imgrec.data.folder import ImageFiles
from imgrec.image_folders import find_images
from imgrec.inference.confusion_matrix import confusion_table, draw_confusion_matrix
from imgrec.inference.file_batches import FileBatches
from imgrec.inference.metrics import make_report
from imgrec.inference.predictor import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run whose best checkpoint holds averaged weights, with class weights in the loss."""
    root = tmp_path_factory.mktemp("runs")
    words = [
        f"runs_dir={root}",
        "name=run",
        "id=one",
        "data=digits",
        "model=simple_cnn",
        "model.widths=[8,16]",
        "model.dense=32",
        "model.dense_dropout=0",
        "epochs=2",
    ]
    words += [
        "optim.lr=0.01",
        "callbacks.ema.decay=0.9",
        "loss.class_weights=balanced",
        "logger=none",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
    ]
    imgrec.fit(config.load("train", words), quiet=True)
    return root / "run" / "one"


@pytest.fixture(scope="module")
def pngs(run, tmp_path_factory):
    """The images of the run's test split as files FOLDER/CLASS/*.png; class 7 has none."""
    root = tmp_path_factory.mktemp("pngs")
    stored = load(run).checkpoint
    data = instantiate(stored.run.data.to_node())
    images = data.split("test")
    for number, (image, label) in enumerate(zip(images.images[:, 0].numpy(), images.labels, strict=True)):
        if label != 7:
            (root / str(label)).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / str(label) / f"{number:04d}.png")
    return root


def evaluate(*words):
    return cli.main(["evaluate", *map(str, words), "device=cpu", "num_workers=0"])


@pytest.mark.usefixtures("drawn")
def test_the_test_split_has_the_figures_of_the_training(run, capsys):
    assert evaluate(f"ckpt={run}") == 0
    found = json.loads((run / "evaluate_test.json").read_text())
    result = json.loads((run / "result.json").read_text())
    trained, named = result["test"], result["weights"]["test"]
    assert (found["checkpoint"], found["weights"]) == (named["file"], named["sha256"])  # the path as the run may be moved
    assert found["figures"] == trained  # the loss to the last bit
    assert 0.3 < trained["accuracy"] < 1
    assert found["unread_images"] == []
    said = capsys.readouterr().out
    for name, key in (("accuracy", "accuracy"), ("AUROC, macro", "macro_auroc"), ("log loss", "log_loss")):
        assert re.search(rf"^{name} +{trained[key]:.4f}\b", said, re.MULTILINE)
    assert f"figures in {run}/evaluate_test.json, confusion matrix in {run}/evaluate_test.png" in said
    assert "\x1b" not in said
    with Image.open(run / "evaluate_test.png") as picture:
        assert picture.info["Software"] == "imgrec"
        assert min(picture.size) > 300


def test_val_and_train_are_other_images(run, tmp_path):
    counts = {}
    for split in ("val", "train"):
        assert evaluate(f"ckpt={run}/checkpoints/last.ckpt", f"split={split}", f"out={tmp_path}/{split}.json", "plot=none") == 0
        counts[split] = json.loads((tmp_path / f"{split}.json").read_text())["figures"]["count"]
    assert counts == {"val": 144, "train": 1293}  # as the start screen of the training says: 1,797 in 1,293 + 144 + 360
    assert not list(tmp_path.glob("*.png"))


def test_files_of_the_test_split_have_its_figures(run, pngs, tmp_path, capsys):
    evaluate(f"ckpt={run}", f"folder={pngs}", f"out={tmp_path}/folder.json", "plot=none")
    said = capsys.readouterr().out
    assert "1 of 10 classes (7)" in said
    assert "class weights" in said  # which the loss of a folder cannot have
    found = json.loads((tmp_path / "folder.json").read_text())
    trained = json.loads((run / "result.json").read_text())["test"]
    expected = np.array(trained["confusion"])
    expected[7] = 0
    assert np.array_equal(found["figures"]["confusion"], expected)
    assert found["figures"]["absent_classes"] == ["7"]
    assert (found["split"], found["folder"]) == (None, str(pngs))


def test_figures_equal_sklearns_on_what_predict_says(run, pngs, tmp_path):
    assert evaluate(f"ckpt={run}", f"folder={pngs}", f"out={tmp_path}/folder.json", "batch_size=7", "plot=none") == 0
    found = json.loads((tmp_path / "folder.json").read_text())["figures"]
    paths = [name for folder in sorted(pngs.iterdir()) for name in find_images(str(pngs), folder.name)]
    answers = load(run, device="cpu").predict([pngs / name for name in paths], top_k=10)
    true, predicted = [name.split("/")[0] for name in paths], [answer.class_name for answer in answers]
    names = [row["name"] for row in found["per_class"]]
    assert np.array_equal(found["confusion"], confusion_matrix(true, predicted, labels=names))
    theirs = classification_report(true, predicted, labels=names, output_dict=True, zero_division=0)
    for row in found["per_class"]:
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            list(theirs[row["name"]].values()), abs=1e-12
        )
    assert found["accuracy"] == pytest.approx(np.mean(np.array(true) == predicted), abs=1e-12)
    chances = [dict(answer.top)[name] for answer, name in zip(answers, true, strict=True)]
    # Every image alike, though the run's loss is weighted, and without the temperature, as in the training.
    plain = load(run, device="cpu", calibrated=False).predict([pngs / name for name in paths], top_k=10)
    without = [dict(answer.top)[name] for answer, name in zip(plain, true, strict=True)]
    assert found["loss"] == pytest.approx(-np.log(without).mean(), rel=1e-5) != pytest.approx(-np.log(chances).mean(), rel=1e-5)
    top5 = [name in [one for one, _ in answer.top[:5]] for answer, name in zip(answers, true, strict=True)]
    assert found["top5"] == np.mean(top5)
    assert_scores(found, np.array([names.index(name) for name in true]), predicted, answers)


def assert_scores(found, labels, predicted, answers):
    """Those of scikit-learn, for the classes that have images."""
    names = [row["name"] for row in found["per_class"]]
    rows = np.array([[dict(answer.top)[name] for name in names] for answer in answers], dtype=np.float64)
    assert found["log_loss"] == pytest.approx(-np.log(rows[np.arange(len(labels)), labels]).mean(), rel=1e-6)
    assert found["brier"] == pytest.approx(((rows - np.eye(len(names))[labels]) ** 2).sum(axis=1).mean(), rel=1e-6)
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef([names[k] for k in labels], predicted), abs=1e-12)
    areas, averages = [], []
    for label, row in enumerate(found["per_class"]):
        if row["support"]:
            areas.append(roc_auc_score(labels == label, rows[:, label]))
            averages.append(average_precision_score(labels == label, rows[:, label]))
            assert (row["auroc"], row["average_precision"]) == pytest.approx((areas[-1], averages[-1]), abs=1e-6)
        else:
            assert (row["name"], row["auroc"], row["average_precision"], row["recall_interval"]) == ("7", None, None, [0, 1])
    assert found["macro_auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found["macro_average_precision"] == pytest.approx(np.mean(averages), abs=1e-6)


def test_slices_of_files_are_by_what_pil_says_of_them(run, pngs, tmp_path, capsys):
    assert evaluate(f"ckpt={run}", f"folder={pngs}", f"out={tmp_path}/f.json", "by=brightness,type,size", "plot=none") == 0
    said = capsys.readouterr().out
    assert "by=type: all images are in one slice (PNG)" in said
    assert "by=size: all images are in one slice (64 pixels)" in said
    rows = json.loads((tmp_path / "f.json").read_text())["slices"]
    names = [name for folder in sorted(pngs.iterdir()) for name in find_images(str(pngs), folder.name)]
    levels = np.array([np.asarray(Image.open(pngs / name)).mean() for name in names]).round(1)
    answers = load(run, device="cpu").predict([pngs / name for name in names])
    right = np.array([answer.class_name == name[0] for answer, name in zip(answers, names, strict=True)])
    assert len(rows) == 5
    for row, begin, end in zip(
        rows, *(np.quantile(levels, np.arange(k, 5 + k) / 5, method="inverted_cdf") for k in (0, 1)), strict=True
    ):
        inside = (levels > (begin if row is not rows[0] else -1)) & (levels <= end)
        assert (row["by"], row["images"], row["accuracy"]) == ("brightness", inside.sum(), right[inside].mean())


def test_without_the_temperature_the_log_loss_is_the_loss_of_every_image(run, pngs, tmp_path):
    assert evaluate(f"ckpt={run}", f"folder={pngs}", f"out={tmp_path}/f.json", "calibrated=false", "plot=none") == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["figures"]["log_loss"] == pytest.approx(found["figures"]["loss"], rel=1e-6)
    assert (found["calibration"]["temperature"], found["calibration"]["after"]) == (1.0, None)


def test_python_evaluates_too(run, pngs):
    predictor = load(run, device="cpu")
    first = predictor.evaluate(num_workers=0)
    assert first.to_dict() == json.loads((run / "result.json").read_text())["test"]
    assert predictor.evaluate(folder=str(pngs), num_workers=0).count == first.count - first.per_class[7]["support"]
    assert predictor.evaluate(num_workers=0) == first  # nothing is left over from the calls before


def test_predicting_with_a_batch_norm_network_changes_nothing_in_it(run):
    predictor = load(run, device="cpu")
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    predictor.evaluate("val", num_workers=0)
    for key, value in predictor.model.state_dict().items():
        assert torch.equal(before[key], value)


def copy_of(pngs: Path, to: Path) -> Path:
    for name in ("0/a.png", "1/b.png", "1/c.png"):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        source = sorted((pngs / name[0]).iterdir())[ord(name[2]) - ord("a")]
        (to / name).write_bytes(source.read_bytes())
    return to


def test_a_bad_image_is_refused_or_counted(run, pngs, tmp_path, capsys):
    folder = copy_of(pngs, tmp_path / "some")
    whole = (folder / "1" / "b.png").read_bytes()
    (folder / "1" / "b.png").write_bytes(whole[: len(whole) // 2])
    assert evaluate(f"ckpt={run}", f"folder={folder}", f"out={tmp_path}/x.json") == 2
    assert_refused(capsys.readouterr().err, f"{folder}/1/b.png", "data.on_bad_image_eval=skip")
    assert not (tmp_path / "x.json").exists()
    assert evaluate(f"ckpt={run}", f"folder={folder}", f"out={tmp_path}/x.json", "data.on_bad_image_eval=skip", "plot=none") == 0
    assert f"{folder}/1/b.png" in capsys.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["figures"]["count"] == 2
    assert found["unread_images"] == [f"{folder}/1/b.png"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("folder={tmp}", ("{tmp}", "zero", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "Rename")),
        ("data.root={tmp}", ("data.root={tmp}", "Digits", "Leave it out")),
        ("folder={tmp} data.root=x", ("data.root=x", "folder={tmp}", "Leave it out")),
        ("data.image_size=20", ("data.image_size=20", "imgrec.models.simple_cnn.SimpleCNN", "8 pixels", "Leave it out")),
        ("data.image_size=0", ("data.image_size=0", "1")),
        ("folder={tmp} data.on_bad_image_eval=drop", ("data.on_bad_image_eval=drop", "refuse, skip or null")),
        ("by=camera", ("by=camera", "size, brightness, type", "by=brightness")),
        ("out={tmp}/notes.json", ("out={tmp}/notes.json", "exists", "out=ANOTHER", "overwrite=true")),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, words, parts):
    (tmp_path / "zero").mkdir()
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    assert evaluate(f"ckpt={run}", *words.format(tmp=tmp_path).split()) == 2
    assert_refused(capsys.readouterr().err, *(part.format(tmp=tmp_path) for part in parts))
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'


@pytest.mark.slow
def test_a_data_folder_with_other_classes_is_refused(tmp_path, capsys):
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "val/dog/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "data" / name)
    data = (
        "data=imagefolder",
        f"data.root={tmp_path}/data",
        "data.image_size=8",
        "data.channels=1",
        "data.mean=[0]",
        "data.std=[1]",
    )
    run = save_untrained_run(tmp_path / "run", *data, classes=("cat", "dog"))
    assert evaluate(f"ckpt={run}") == 0
    (tmp_path / "data" / "train" / "dog").rename(tmp_path / "data" / "train" / "wolf")
    (tmp_path / "data" / "val" / "dog").rename(tmp_path / "data" / "val" / "wolf")
    capsys.readouterr()
    assert evaluate(f"ckpt={run}") == 2
    suggestions = ("data.root=FOLDER", "folder=DIR", "DIR/CLASS/*")
    assert_refused(capsys.readouterr().err, f"{tmp_path}/data", "new: wolf", "gone: dog", *suggestions)
    assert evaluate(f"ckpt={run}", f"folder={tmp_path}/data/test") == 0  # the folder alone is enough


def test_a_run_on_made_images_is_evaluated(tmp_path):
    data = ("data=fake", "data.num_classes=3", "data.image_size=16", "data.train_samples=24", "data.test_samples=8")
    run = save_untrained_run(tmp_path / "run", *data, classes=("class_0", "class_1", "class_2"))
    assert evaluate(f"ckpt={run}", "plot=none") == 0


def test_a_higher_resolution_has_the_figures_that_torchvision_and_torch_give(tmp_path):
    run = save_untrained_run(tmp_path / "run", tiny=("data=digits", "model=resnet", "model.depth=20"))
    assert evaluate(f"ckpt={run}", "data.image_size=20", "plot=none") == 0
    figures = json.loads((run / "evaluate_test.json").read_text())
    assert figures["image_size"] == 20
    stored = load(run, device="cpu")
    images = instantiate(stored.checkpoint.run.data.to_node()).split("test")
    pixels = v2.functional.resize(images.images, [20, 20])
    mean, std = (torch.tensor(stored.preprocessing[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    labels = torch.from_numpy(images.labels)
    with torch.no_grad():
        logits = stored.model((pixels / 255 - mean) / std)
    assert figures["figures"]["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert figures["figures"]["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def made_report(classes):
    counts = np.random.default_rng(0).integers(0, 5, (classes, classes)) + 50 * np.eye(classes, dtype=np.int64)
    counts[0] = 0
    return make_report(counts, top5_hits=1, loss=0.5, classes=[f"class number {k}" for k in range(classes)])


def printed(what, width):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(what)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_matrix_on_a_terminal_holds_every_count():
    found = made_report(12)
    lines = printed(confusion_table(found, width=100, most=20), 100)
    assert len(lines) == 2 + 12
    # "3 class number 3" stands before the counts.
    cells = [[0 if cell == "." else int(cell) for cell in line.split()[4:]] for line in lines[2:]]
    assert cells == found.confusion
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("classes", "width"), [(30, 200), (12, 40)])
def test_where_the_matrix_does_not_fit_the_worst_confusions_are_listed(classes, width):
    found = made_report(classes)
    lines = printed(confusion_table(found, width=width, most=20), 200)
    counts = np.array(found.confusion) * (1 - np.eye(classes, dtype=np.int64))
    assert lines[0] == "most frequent confusions"
    shown = [line.split() for line in lines[2:]]
    assert [int(words[6]) for words in shown] == sorted(counts.ravel(), reverse=True)[:10]
    assert all(counts[int(words[2]), int(words[5])] == int(words[6]) for words in shown)


@pytest.mark.parametrize("classes", [2, 70])
def test_pictures_of_few_and_many_classes_can_be_drawn(classes):
    names = [f"$a_{k}^" for k in range(classes)]  # no formula, whatever the class is called
    found = make_report(np.eye(classes, dtype=np.int64), top5_hits=classes, loss=0.0, classes=names)
    assert draw_confusion_matrix(found, title="100% of $ right").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "key", "files"),
    [
        pytest.param("evaluate", "folder", ImageFiles, marks=pytest.mark.slow),
        pytest.param("predict", "files", FileBatches, marks=pytest.mark.slow),
    ],
)
def test_loader_processes_that_hang_or_are_killed_end_it_with_a_line(
    command, key, files, run, pngs, tmp_path, capsys, monkeypatch
):
    parent, read = os.getpid(), files.__getitem__

    def in_workers(then):
        monkeypatch.setattr(files, "__getitem__", lambda *given: then() if os.getpid() != parent else read(*given))

    out = f"out={tmp_path}/out.{'csv' if command == 'predict' else 'json'}"
    words = [command, f"ckpt={run}", f"{key}={pngs}", out, "num_workers=1", "device=cpu"]
    in_workers(lambda: time.sleep(LIMIT_S))
    assert cli.main([*words, "trainer.timeout_s=1.0"]) == 1
    assert_refused(capsys.readouterr().err, "trainer.timeout_s=1", "same command", "trainer.timeout_s=2")
    in_workers(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert cli.main(words) == 1
    assert_refused(capsys.readouterr().err, "the loss of loader worker", "killed by SIGKILL", "num_workers", "same command")
