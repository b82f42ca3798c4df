"""What imgrec extend changed: the answers to test images of the old classes before and after, and those of the new ones."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from imgrec.analysis.changed_answers import changed_answers, few_images_sentence
from imgrec.analysis.intervals import share_interval
from imgrec.config.schema import Device, Node, RunConfig
from imgrec.data.image_data import ImageData
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import CheckpointError, plural
from imgrec.inference.checkpoint import load_checkpoint, weights_hash
from imgrec.inference.measure import measure_images
from imgrec.inference.predictor import Predictor
from imgrec.inference.split_predictions import SplitPredictions
from imgrec.terminal import percent, percents

FEW_VALIDATED = 10  # validation images of a class: of fewer an accuracy is known to 16 points at best, by its standard error
MOST_MOVES = 10  # pairs of classes that are listed
MOST_PICTURED = 24  # images whose answer changed, for the report


def measure_extension(run: RunConfig, data: ImageData, predictions: SplitPredictions | None, group: WorkerGroup) -> Node | None:
    """The entry "extended" of result.json, on rank 0; None of a run that adds no classes. A collective.

    predictions: of the test, on rank 0; None without one. The network of `weights` answers the test images of the old
    classes once more, each rank a share of them. CheckpointError where its weights are not those that were extended.
    """
    parent = run.extended()
    if parent is None:
        return None
    old = sum(parent.classes)
    entry: Node = {
        "parent": run.weights,
        "sha256": parent.sha256,
        "frozen": parent.frozen,
        "old_classes": list(data.classes[:old]),
        "new_classes": list(data.classes[old:]),
        "fewest": _fewest(data, old),
        "old": None,
        "new": None,
    }
    if not data.counts("test").any():
        return entry
    assert run.weights is not None
    images = data.split("test")
    rows = np.flatnonzero(images.labels < old)
    before = np.full(len(images), -1)
    if len(rows):
        device: Device = "cpu" if run.trainer.accelerator == "cpu" else "auto"
        precision = None if run.trainer.precision == "auto" else run.trainer.precision
        checkpoint = load_checkpoint(run.weights)
        if weights_hash(checkpoint.content) != parent.sha256:
            raise CheckpointError(
                f"weights={run.weights}: its weights have changed during the training, so its answers are others than before. "
                "Put that checkpoint back and start the same command again."
            )
        network = Predictor(checkpoint, device=device, precision=precision)
        workers = 0 if data.in_memory else run.num_workers
        measured = measure_images(network, images.take(rows), None, batch_size=None, num_workers=workers, group=group)
        if measured.predictions is not None:
            before[rows[measured.predictions.indices]] = measured.predictions.predicted
    if predictions is None:  # on another rank than the first
        return None
    true, first = images.labels[predictions.indices], before[predictions.indices]
    of_old, of_new = (true < old) & (first >= 0), true >= old
    if of_old.any():
        found = changed_answers(true[of_old], first[of_old], predictions.predicted[of_old])
        moves = [
            {"from": data.classes[one], "to": data.classes[other], "images": count}
            for one, other, count in found.moves[:MOST_MOVES]
        ]
        changed = np.flatnonzero(of_old & (first != predictions.predicted))
        shown = changed[np.argsort(-predictions.probability[changed], kind="stable")][:MOST_PICTURED]
        pictured = [{"row": row, "before": data.classes[first[row]]} for row in shown.tolist()]  # of predictions.parquet
        entry["old"] = found._asdict() | {"difference": list(found.difference), "moves": moves, "shown": pictured}
    if of_new.any():
        right = predictions.predicted[of_new] == true[of_new]
        interval = share_interval(int(right.sum()), len(right)).tolist()
        entry["new"] = {"images": len(right), "accuracy": float(right.mean()), "accuracy_interval": interval}
    return entry


def _fewest(data: ImageData, old: int) -> Node | None:
    """The new class with the fewest validation images, where these are fewer than FEW_VALIDATED; None also without validation."""
    val, test = (data.counts(split) for split in ("val", "test"))
    label = old + int(val[old:].argmin())
    if not val.any() or val[label] >= FEW_VALIDATED:
        return None
    return {"class": data.classes[label], "val": int(val[label]), "test": int(test[label])}


def extension_lines(entry: dict[str, Any]) -> Iterator[str]:
    """What a terminal says of the entry."""
    old, new = entry["old"], entry["new"]
    if old is None and new is None:
        yield "what changed is not known: there is no test split"
    if old is not None:
        value, low, high = (100 * part for part in old["difference"])
        yield (
            f"old classes: accuracy {percent(old['before'])} {percents(old['before_interval'])} before, {percent(old['after'])} "
            f"{percents(old['after_interval'])} now on {plural(old['images'], 'image')}: {value:+z.2f} points ({low:z.2f} to {high:z.2f})"
        )
    if new is not None:
        yield f"new classes: accuracy {percent(new['accuracy'])} {percents(new['accuracy_interval'])} on {plural(new['images'], 'image')}"
    if old is not None:
        moves = ", ".join(f"{move['from']} -> {move['to']} {move['images']:,}" for move in old["moves"][:3])
        yield f"{plural(old['changed'], 'answer')} to old images changed{f': {moves}' if moves else ''}"
    if entry["fewest"] is not None:
        yield few_images_sentence(entry["fewest"], frozen=entry["frozen"])
