"""What an evaluation says and writes: tables and sentences, the JSON, pictures, and the table of all predictions."""

import json
from dataclasses import asdict
from typing import NamedTuple

from imgrec.analysis.robustness import Robustness
from imgrec.config.schema import Node
from imgrec.errors import first_names
from imgrec.files import atomic_write
from imgrec.inference.checkpoint import package_versions, weights_hash
from imgrec.inference.confusion_matrix import confusion_table, draw_confusion_matrix
from imgrec.inference.corruption_table import corruptions_node, corruptions_sentence, corruptions_table, draw_corruptions
from imgrec.inference.evaluation import EvaluationImages
from imgrec.inference.image_facts import Sliced
from imgrec.inference.metrics import Report
from imgrec.inference.metrics_table import report_tables
from imgrec.inference.prediction_table import EvaluationFiles
from imgrec.inference.predictor import Predictor
from imgrec.inference.reliability import draw_reliability, reliability_sentence
from imgrec.inference.slice_table import draw_slices, slices_sentences, slices_table
from imgrec.inference.split_predictions import SplitPredictions, write_predictions
from imgrec.terminal import Terminal, percents

MOST_CLASSES = 20  # lines of the table per class, and of the confusion matrix on a terminal


class Evaluated(NamedTuple):
    """What was measured, on the first process."""

    predictor: Predictor
    found: EvaluationImages
    where: str  # which images: 'test split'
    report: Report
    predictions: SplitPredictions
    bad: list[str]  # paths of images that could not be read
    reliability: Node
    sliced: Sliced
    robustness: Robustness | None
    processes: int
    seconds: float


def say_evaluation(measured: Evaluated, terminal: Terminal) -> None:
    """The tables, and what they do not show."""
    rules, bad, sliced = terminal.console.is_terminal, measured.bad, measured.sliced
    terminal.say()
    terminal.say(report_tables(measured.report, most=MOST_CLASSES, rules=rules))
    terminal.say()
    terminal.say(confusion_table(measured.report, width=terminal.console.width, most=MOST_CLASSES))
    terminal.say()
    if bad:
        left = "image could not be read and is" if len(bad) == 1 else "images could not be read and are"
        terminal.say(f"{len(bad):,} {left} left out: {first_names(bad, 3)}", style="yellow")
    if measured.found.counts is None and measured.predictor.checkpoint.run.loss.get("class_weights") == "balanced":
        terminal.say(
            "The loss counts every image alike: class weights follow the training counts, which are not read for a folder."
        )
    terminal.say(reliability_sentence(measured.reliability))
    if sliced.slices:
        terminal.say()
        terminal.say(slices_table(sliced.slices, rules=rules))
        terminal.say()
    for line in slices_sentences(sliced):
        terminal.say(line)
    if (robustness := measured.robustness) is not None:
        terminal.say()
        terminal.say(corruptions_table(robustness, rules=rules))
        terminal.say()
        terminal.say(corruptions_sentence(robustness, measured.report))


def write_evaluation(measured: Evaluated, files: EvaluationFiles, terminal: Terminal, measured_on: Node) -> None:
    """The JSON, the pictures and the table of the images. measured_on: the keys that say which images they are."""
    predictor, report, predictions = measured.predictor, measured.report, measured.predictions
    robustness, about = measured.robustness, f"{predictor.checkpoint.run.name}, {measured.where}"
    checkpoint, labels, changes = predictor.checkpoint, measured.found.images.labels, measured.found.changes
    content = {
        "imgrec": "evaluate",
        "checkpoint": str(
            files.ckpt.relative_to(files.out.parent) if files.ckpt.is_relative_to(files.out.parent) else files.ckpt
        ),
        "weights": weights_hash(checkpoint.content),
        **measured_on,
        "figures": report.to_dict(),
        "calibration": measured.reliability,
        "slices": [asdict(row) for row in measured.sliced.slices],
        "corruptions": None if robustness is None else corruptions_node(robustness, report),
        "unread_images": measured.bad,
        "tta": predictor.tta,
        "image_size": checkpoint.preprocessing["image_size"],
        "changed_images": {} if changes is None else dict(changes.counts),
        "device": str(predictor.device),
        "precision": predictor.precision,
        "processes": measured.processes,
        "seconds": round(measured.seconds, 2),
        "versions": package_versions(),
    }
    atomic_write(files.out, json.dumps(content, indent=1))
    if files.plot is not None:
        right = f"{report.accuracy:.2%} {percents(report.accuracy_interval)} of {report.count:,} images right"
        atomic_write(files.plot, draw_confusion_matrix(report, title=f"{about}: {right}"))
    terminal.say(f"figures in {files.out}" + ("" if files.plot is None else f", confusion matrix in {files.plot}"))
    pictures: list[str] = []
    if (picture := files.predictions.reliability) is not None:
        title = f"{about}: {report.count:,} images"
        atomic_write(picture, draw_reliability(predictions, labels, measured.reliability, title=title))
        pictures.append(f"reliability diagram in {picture}")
    if files.slices is not None and measured.sliced.slices:
        title = f"{about}: where is it worse than elsewhere?"
        atomic_write(files.slices, draw_slices(measured.sliced.slices, accuracy=report.accuracy, title=title))
        pictures.append(f"slices in {files.slices}")
    if files.corruptions is not None and robustness is not None:
        atomic_write(files.corruptions, draw_corruptions(robustness, report, title=f"{about}: accuracy under corruptions"))
        pictures.append(f"corruptions in {files.corruptions}")
    if pictures:
        terminal.say(", ".join(pictures))
    terminal.say(write_predictions(files.predictions, predictions, measured.found.images, checkpoint.classes))
