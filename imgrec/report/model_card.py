"""model_card.md: what a network is, was trained on and is worth, in the form that Hugging Face shows (Mitchell 2019, arXiv 1810.03993)."""

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from imgrec.errors import plural
from imgrec.html_page import shown
from imgrec.inference.metrics_table import TOTALS
from imgrec.report.facts import Facts
from imgrec.report.figures import figure_text, interval_text
from imgrec.report.measured import OF_TEST
from imgrec.report.questions import findings, worst_class
from imgrec.terminal import duration, percent, percents
from imgrec.training.measured_file import change_sentence

OWN_FOLDERS = ("ImageFolder", "ImageTable", "Shards")  # whose data.root is named as the author named it
MOST_NAMED_CLASSES = 50  # that are named
# result.json's figures by the names that Hugging Face lists.
CARD_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "macro_precision": "precision", "macro_recall": "recall"}


def model_card(facts: Facts) -> str:
    """The content of model_card.md; facts: of a finished run."""
    assert facts.result is not None
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [
        "---",
        "# license: choose one, such as apache-2.0",
        f"{front}---\n",
        f"# {plain(facts.name)}\n",
        f"{plain(facts.result['summary'])}.\n",
        *_details(facts),
        *_use(facts),
        *_training(facts),
        *_evaluation(facts),
        *_limitations(facts),
    ]
    return "\n".join(parts)


def plain(value: object) -> str:
    """A user's text in one line of Markdown, as it is."""
    return re.sub(r"([\\`*\[\]<>|~$&]|^[#+-]|\b_|_\b)", r"\\\1", _line(value))


def _front_matter(facts: Facts) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "imgrec",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "imgrec", "pytorch"],
    }
    if facts.test is None or facts.measured is not OF_TEST:
        return front
    measured = [
        {"type": kind, "name": key.replace("_", " "), "value": round(float(facts.test[key]), 6)}
        for key, kind in CARD_METRICS.items()
        if facts.test.get(key) is not None
    ]
    data = _data_name(facts)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": re.sub(r"\W+", "_", data.lower()).strip("_") or "images", "split": "test"},
        "metrics": measured,
    }
    return front | {"metrics": list(CARD_METRICS.values()), "model-index": [{"name": facts.name, "results": [result]}]}


def _data_name(facts: Facts) -> str:
    data = facts.config["data"]
    kind = str(data.get("_target_", "")).rpartition(".")[2]
    own = kind in OWN_FOLDERS and data.get("root")
    return os.path.basename(os.path.normpath(own)) if own else kind


def _details(facts: Facts) -> Iterator[str]:
    assert facts.result is not None
    model = str(facts.config.get("model", {}).get("_target_", "")).rpartition(".")[2]
    data = facts.config["data"]
    yield "## Model details\n"
    yield f"- **Network:** {plain(model)}, {facts.result.get('parameters') or 0:,} parameters, {(facts.result.get('flops') or 0) / 1e6:,.1f} MFLOPs an image"
    yield f"- **Input:** images of {data.get('image_size')} x {data.get('image_size')} pixels, {'gray' if data.get('channels') == 1 else 'colour'}; others are resized"
    names = facts.classes or tuple(facts.images.get("train", {}))
    if names:
        more = f" and {len(names) - MOST_NAMED_CLASSES:,} more" if len(names) > MOST_NAMED_CLASSES else ""
        yield f"- **Output:** one of {plural(len(names), 'class', 'es')}: {', '.join(map(plain, names[:MOST_NAMED_CLASSES]))}{more}"
    if weights := facts.config.get("weights"):
        yield f"- **Started from:** weights {plain(weights)}"
    if teacher := (facts.config.get("distill") or {}).get("teacher"):
        yield f"- **Learned from:** the labels and the answers of {plain(teacher)}"
    versions = ", ".join(f"{name} {version}" for name, version in (facts.result.get("versions") or {}).items())
    yield f"- **Trained with:** {plain(versions)}\n"


def _use(facts: Facts) -> Iterator[str]:
    yield "## Intended use\n"
    yield "<!-- For the author: who should use it and for what, and what it must not be used for. -->\n"
    yield (
        "It tells images of its classes apart that are like those it was trained on. It names one of its classes for every image, also for one "
        "that shows none of them, unless it is asked with `risk=0.01` to answer `none of these` where it is not sure. Decisions about people "
        "or safety need a test of their own, on images of that use.\n"
    )
    yield "## How to use\n"
    yield f"    imgrec predict {_line(facts.quoted)} FOLDER_OR_IMAGES\n"
    yield "or from Python:\n"
    yield f"    import imgrec\n    predictions = imgrec.load({_line(facts.folder)!r}).predict(['a.jpg', 'b.jpg'])\n"


def _line(value: object) -> str:
    return " ".join(shown(value).split())


def _training(facts: Facts) -> Iterator[str]:
    assert facts.result is not None
    yield "## Training data\n"
    yield f"{plain(_data_name(facts))}. <!-- For the author: where the images are from, who labelled them, their license. -->\n"
    if facts.images:
        yield "| split | images | fewest of a class | most |\n| --- | ---: | ---: | ---: |"
        for split, counts in facts.images.items():
            if present := [count for count in counts.values() if count]:
                yield f"| {plain(split)} | {sum(present):,} | {min(present):,} | {max(present):,} |"
        yield ""
    if facts.cut_short:
        yield f"Of the training images each epoch took those of `{_line(facts.cut_short)}`.\n"
    if left_out := facts.result.get("left_out"):
        yield f"{plural(len(left_out), 'image')} could not be read and had no part in it.\n"
    yield "## Training\n"
    soup = facts.result.get("soup")
    epochs = (
        f"The mean of the weights of {plural(sum(each['kept'] for each in soup['ingredients']), 'run')}"
        if soup
        else plural(len(facts.run.epochs), "epoch")
    )
    yield f"{epochs}, {duration(facts.result['train_seconds'])} on {plain(facts.result.get('device', 'an unknown device'))}. The command:\n"
    command = facts.result.get("command")
    yield f"    {_line(command)}\n"


def _evaluation(facts: Facts) -> Iterator[str]:
    test = facts.test
    yield "## Evaluation\n"
    if test is None:
        yield "There was no test split: the figures above are of the validation images, by which the best epoch was chosen.\n"
        return
    if facts.measured is OF_TEST:
        there = sum(facts.images.get("test", {}).values())
        part = f" of {there:,}" if there > test["count"] else ""
        yield f"Of {test['count']:,}{part} test images, by which nothing was chosen, with 95% intervals:\n"
    else:
        yield f"Of {test['count']:,} validation images, by which the best epoch was chosen, as there was no test split, with 95% intervals:\n"
    yield f"| figure | {facts.measured.of} | 95% interval |\n| --- | ---: | --- |"
    for key, name, interval in TOTALS:
        if test.get(key) is not None:
            yield f"| {name} | {figure_text(key, test[key])} | {interval_text(key, test.get(interval or ''))} |"
    yield ""
    if (worst := worst_class(facts)) is not None:
        recall = f"{percent(worst['recall'])} {percents(worst['recall_interval'])} of {plural(worst['support'], 'image')}"
        yield f"The worst class is {plain(worst['name'])}: recall {recall}, precision {percent(worst['precision'])}.\n"


def _limitations(facts: Facts) -> Iterator[str]:
    assert facts.result is not None
    yield "## Limitations\n"
    yield f"- The intervals are of images like those {facts.measured.of}. Another camera, place or time, or other shares of the classes, may give other figures."
    for finding in findings(facts):
        sentence = finding["sentence"]
        yield f"- {plain(sentence[0].upper() + sentence[1:])}"
    if (changed := change_sentence(facts.folder, facts.result)) is not None:
        yield f"- {plain(changed)}"
    calibration = facts.result.get("calibration") or {}
    if calibration.get("temperature") is None or calibration.get("reason"):
        reason = f", as {plain(calibration['reason'])}" if calibration.get("reason") else ""
        yield f"- The probabilities are not calibrated: no temperature was fitted{reason}."
    yield ""
