"""The directory of a finished run of many images, written by hand: without a training, with the functions that a training calls."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from imgrec import config
from imgrec.analysis.scores import probability_scores
from imgrec.data.decode import Preprocessing
from imgrec.data.folder import ImageFiles
from imgrec.inference.metrics import make_report
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.inference.split_predictions import MOST_PROBABILITIES, SplitPredictions, write_predictions


def class_names(count: int) -> list[str]:
    """Names as of ImageNet, among them a long one, a Chinese one, and one that is HTML."""
    names = [
        f"n{1440000 + 97 * number:08d} kind of animal {number}" if count > 50 else f"class {number}" for number in range(count)
    ]
    names[1] = "小熊猫 (红熊猫) 喜马拉雅山脉"
    names[2] = "<script>document.title='changed'</script><b>&amp;"
    names[3] = ("a name of one hundred and twenty characters " * 3)[:120]
    return names


def write_finished_run(folder: Path, classes: Sequence[str], *, images: int, distinct: int = 200) -> Path:
    """FOLDER/run of `images` test images in FOLDER/photos; most errors are among nine similar classes. Gives FOLDER/run.

    distinct: pictures, which have several names each.
    """
    rng = np.random.default_rng(0)
    count = len(classes)
    true = np.sort(rng.integers(count, size=images))
    probabilities, predicted = _predictions(rng, true, count)
    chosen = probabilities[np.arange(images), predicted], probabilities[np.arange(images), true]
    kept = images * count <= MOST_PROBABILITIES
    predictions = SplitPredictions(
        np.arange(images), predicted, *chosen, probabilities if kept else np.empty((images, 0), dtype=np.float32)
    )
    words = [f"data.root={folder / 'photos'}", "data=imagefolder", "data.image_size=128", "model=resnet", "epochs=12"]
    run = config.load("train", [*words, f"runs_dir={folder}", "logger=none"]).with_classes(count)
    preprocessing = Preprocessing(**{key: getattr(run.data, key) for key in Preprocessing.__annotations__})
    split = _photographs(folder / "photos", true, preprocessing, distinct)
    (path := folder / "run").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(run.to_dict()))
    files = PredictionFiles(path / "errors.csv", None, path / "predictions.parquet")
    write_predictions(files, predictions, split, classes)
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (true, predicted), 1)
    report = make_report(confusion, top5_hits=int(0.95 * images), loss=0.9, classes=classes)
    report = report.with_scores(probability_scores(predictions.probabilities, predictions.true_probability, true))
    _figures(path, report.to_dict(), run.to_dict())
    return path


def _predictions(rng, true, count):
    """Softmax of logits in which classes of one group of nine are alike; float32 [N, K] and int64 [N]."""
    group = rng.permutation(count) // 9
    logits = rng.normal(size=(len(true), count)).astype(np.float32)
    logits += 2.5 * (group[true][:, None] == group)
    logits[np.arange(len(true)), true] += 1.5 + 1.5 * rng.normal(size=len(true))
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits, logits.argmax(axis=1)


def _photographs(folder: Path, true, preprocessing: Preprocessing, distinct: int) -> ImageFiles:
    """Pictures of large and small waves, of 128 pixels a side, linked under the names of all images."""
    rng = np.random.default_rng(1)
    x = np.linspace(0, 1, 128)
    folder.mkdir(parents=True)
    for number in range(distinct):
        waves = sum(
            rng.normal(size=3)
            * np.sin(2 * np.pi * (rng.integers(1, 30) * x[:, None] + rng.integers(1, 30) * x) + rng.random())[..., None]
            for _ in range(6)
        )
        noise = rng.normal(scale=0.3, size=(128, 128, 1))
        Image.fromarray(np.clip(128 + 40 * (waves + noise), 0, 255).astype(np.uint8)).save(folder / f".{number}.jpg", quality=90)
    names = [f"test/class_{label:04d}/image_{number:06d}.jpg" for number, label in enumerate(true.tolist())]
    for name in {os.path.dirname(name) for name in names}:
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(names):
        os.link(folder / f".{number % distinct}.jpg", folder / name)
    labels = np.asarray(true, dtype=np.int64)
    reading = {"on_bad_image": "refuse", "on_bad_image_eval": "refuse", "decoder": "auto"}
    return ImageFiles(str(folder), np.array([name.encode() for name in names]), labels, preprocessing=preprocessing, **reading)


def _figures(path: Path, test: dict, settings: dict) -> None:
    """result.json, metrics.csv and the picture of a training batch."""
    shares = {"data_wait": 0.2, "copy": 0.01, "compute": 0.6, "optimizer": 0.03, "communication": 0.0}
    shares |= {"validation": 0.1, "checkpoint": 0.05, "other": 0.01}
    rows = []
    for epoch in range(1, 13):
        val = test["accuracy"] - 0.5 / epoch**2
        row = {
            "epoch": epoch,
            "step": 100 * epoch,
            "lr": 0.003 * (1 - epoch / 13),
            "train/loss": 3 / epoch,
            "train/accuracy": val + 0.05,
        }
        row |= {"val/loss": 0.9 + 2 / epoch, "val/accuracy": val, "val/macro_f1": val, "images_per_second": 800.0}
        rows.append(
            row | {f"{name}_share": share for name, share in shares.items()} | {"seconds": 60.0, "best": int(epoch == 12)}
        )
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    best = {name: value for name, value in rows[-1].items() if name != "best"}
    result = {
        "summary": f"test accuracy {test['accuracy']:.2%}",
        "status": "finished",
        "name": settings["name"],
        "command": "imgrec train data=imagefolder data.root=photos data.image_size=128 model=resnet epochs=12",
        "seed": 0,
        "best": best,
        "last": best,
        "test": test,
        "calibration": {"temperature": None, "reason": "there is no validation split"},
        "weights": {},
        "left_out": [],
        "images": {split: {row["name"]: 7 * row["support"] for row in test["per_class"]} for split in ("train", "val", "test")},
        "train_seconds": 720.0,
        "time_shares": shares,
        "held_back": None,
        "diagnosis": [{"rule": "still improving", "sentence": "still improving at the end. Train longer."}],
        "finished_at": "2026-01-02T03:04:05+0000",
        "device": "cpu with 1 thread, precision 32",
        "parameters": 269434,
        "flops": 5033216,
        "versions": {"python": "3.11.7", "imgrec": "0.1.0"},
    }
    (path / "result.json").write_text(json.dumps(result, indent=1))
    batch = np.random.default_rng(2).integers(0, 255, (4 * 96, 8 * 96, 3), dtype=np.uint8)
    Image.fromarray(batch).resize((768, 384)).save(path / "train_batch.png")
