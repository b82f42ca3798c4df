"""Run directories as `train` leaves them, written by hand from drawn predictions: no training is needed to read one."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from untrained_run import TINY

from imgrec import config
from imgrec.analysis.scores import probability_scores
from imgrec.inference.metrics import make_report
from imgrec.inference.prediction_table import write_table

WORDS = (*TINY, "logger=none", "report=false", "num_workers=0", "trainer.accelerator=cpu", "epochs=1")
SETTINGS = config.load("train", WORDS).to_dict()
EPOCHS = [
    ("epoch", "train/loss", "train/accuracy", "val/accuracy", "val/loss"),
    (1, 1.5, 0.25, 0.5, 1.25),
    (2, 1.0, 0.5, 0.75, ""),
]


def write_settings(folder: Path, settings: dict[str, Any] | None = None) -> None:
    """config.yaml, with these values by their dotted keys, and metrics.csv."""
    folder.mkdir(parents=True)
    tree = json.loads(json.dumps(SETTINGS))
    for key, value in (settings or {}).items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with (folder / "metrics.csv").open("w") as file:
        csv.writer(file).writerows(EPOCHS)


def write_run(folder, *, true, predicted, images=None, settings=None, finished=True, test=True):
    """The files of a run with these labels of K classes 0, 1, ...; images: their paths, else they have an index."""
    write_settings(folder, settings)
    names = [str(number) for number in range(max(*true, *predicted) + 1)]
    if not finished:
        return folder
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (true, predicted), 1)
    figures = make_report(confusion, top5_hits=0, loss=0.5, classes=names).to_dict() if test else None
    result = {"summary": "", "best": None, "last": {"epoch": 2}, "test": figures, "train_seconds": 61.0}
    (folder / "result.json").write_text(json.dumps(result))
    column = {"index": np.arange(len(true))} if images is None else {"path": images}
    labels = {key: [names[code] for code in codes] for key, codes in (("true", true), ("predicted", predicted))}
    if test:
        write_table(folder / "predictions.parquet", [column | labels])
    return folder


def write_probable_run(
    folder: Path, *, classes: list[str], count: int, seed: int = 0, settings: dict[str, Any] | None = None, **result: Any
) -> Path:
    """A finished run with the probabilities of every class, of drawn labels (none of the last class); result: more of result.json."""
    write_settings(folder, settings)
    draw = np.random.default_rng(seed)
    true = np.random.default_rng(99).integers(max(1, len(classes) - 1), size=count)
    logits = draw.normal(size=(count, len(classes))) + 3 * np.eye(len(classes))[true] * (draw.random((count, 1)) < 0.7)
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    predicted, rows = probabilities.argmax(1), np.arange(count)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (true, predicted), 1)
    top5 = int((np.argsort(-probabilities, axis=1)[:, :5] == true[:, None]).sum())
    report = make_report(confusion, top5_hits=top5, loss=0.5, classes=classes)
    report = report.with_scores(probability_scores(probabilities, probabilities[rows, true], true))
    names = np.array(classes, dtype=object)
    content = {
        "summary": "test accuracy",
        "best": None,
        "last": {"epoch": 2},
        "test": report.to_dict(),
        "train_seconds": 61.0,
    } | result
    (folder / "result.json").write_text(json.dumps(content))
    chances = {"probability": probabilities.max(1), "true_probability": probabilities[rows, true], "probabilities": probabilities}
    labels = {"true": names[true].tolist(), "predicted": names[predicted].tolist()}
    write_table(folder / "predictions.parquet", [{"index": rows} | labels | chances])
    return folder
