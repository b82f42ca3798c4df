"""What a run says of images that it was not trained on: its validation images, and those of its test by the table of that."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imgrec.config.schema import Node, Split
from imgrec.data.batch import Indices
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.distributed.worker_group import worker_group
from imgrec.errors import DataError, plural
from imgrec.files import as_utf8, on_progress
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.measure import Measured, measure_images
from imgrec.inference.predictor import Predictor
from imgrec.inference.split_predictions import SplitPredictions, image_column
from imgrec.inference.stored_predictions import TABLES, StoredPredictions, data_root, read_predictions


class HeldOut(NamedTuple):
    """Images that a network was not trained on, and what it says of them: `predictions.indices` are rows of `images`."""

    split: Split
    images: ImageSet
    predictions: SplitPredictions
    missing: int = 0  # images of the table that are not there now, or have another label

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels[self.predictions.indices]

    def names(self, rows: Indices, root: str) -> list[str]:
        """Of rows of the predictions the paths below the root of the data, or the places in the split."""
        ((key, found),) = image_column(self.images, self.predictions.indices[rows]).items()
        return _below(root, found) if key == "path" else [f"{self.split} {index}" for index in found.tolist()]


def folds_held_out(folder: Path, checkpoint: Checkpoint, data: ImageData) -> list[HeldOut]:
    """Of the training images by the table of all folds, and of the test by that of the first one.

    checkpoint: of the first; data: of `whole_data`. DataError where none of the images are there.
    """
    return _some([_of_table(folder / TABLES[0], "train", data.pool, checkpoint, data), *_of_test(checkpoint, data)], folder)


def run_held_out(checkpoint: Checkpoint, data: ImageData, changes: Node) -> list[HeldOut]:
    """Of validation as the network answers now, and of the test as its table says, where there is one.

    data: of `stored_data` with the same changes. DataError where none of the images are there.
    """
    found: list[HeldOut] = []
    if data.counts("val").any():
        images = evaluation_images(checkpoint, split="val", folder=None, changes=changes).images
        measured = measure_here(Predictor(checkpoint), images, None, timeout_s=checkpoint.run.trainer.timeout_s)
        assert measured.predictions is not None, "one process"
        found.append(HeldOut("val", images, measured.predictions))
    return _some([*found, *_of_test(checkpoint, data)], checkpoint.file.parent.parent)


def _of_test(checkpoint: Checkpoint, data: ImageData) -> list[HeldOut]:
    folder = checkpoint.file.parent.parent
    tables = [file for name in TABLES if (file := folder / name).is_file()]
    there = data.counts("test").any()
    return [_of_table(table, "test", data.split("test"), checkpoint, data) for table in tables[:1] if there]


def _of_table(table: Path, split: Split, images: ImageSet, checkpoint: Checkpoint, data: ImageData) -> HeldOut:
    stored = read_predictions(table, data.classes, fix="Type imgrec evaluate RUN, which writes one.", probabilities=True)
    return HeldOut(
        split, images, *find_predicted(stored, images, then=data_root(checkpoint.run.data.to_node()), now=root_of(data))
    )


def _some(parts: list[HeldOut], folder: Path) -> list[HeldOut]:
    if not any(len(part.predictions.indices) for part in parts):
        raise DataError(
            f"ckpt={folder}: its data has no images that the network was not trained on: no validation split, and no table of a "
            "test. Type imgrec evaluate RUN, which writes one."
        )
    return parts


def measure_here(predictor: Predictor, images: ImageSet, counts: Tensor | None, *, timeout_s: float) -> Measured:
    """`measure_images` in this process, with a bar."""
    done = 0

    def watch(now: int, of: int) -> None:
        nonlocal done
        on_progress.get()("predicting images", now - done, of)
        done = now

    with worker_group(timeout_s) as group:
        return measure_images(predictor, images, counts, batch_size=None, num_workers="auto", group=group, watch=watch)


def find_predicted(stored: StoredPredictions, images: ImageSet, then: str, now: str) -> tuple[SplitPredictions, int]:
    """The rows of a table that are images of a split with the same label, and how many are not; its classes are those of the split.

    then, now: the root of the data when it was written, and of the images.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ((key, here),) = image_column(images, np.arange(len(images))).items()
    names = stored.names
    if key == "path":
        names, here = pa.array(_below(as_utf8(then), names.to_pylist())), list(map(as_utf8, _below(now, here)))
    places = pc.index_in(names, value_set=pa.array(here)) if key == stored.key else pa.nulls(len(names), pa.int32())
    rows = places.fill_null(-1).to_numpy().astype(np.int64)
    known = np.flatnonzero((rows >= 0) & (images.labels[rows] == stored.true))
    assert stored.probability is not None, "a table that imgrec wrote"
    assert stored.true_probability is not None
    probabilities = np.zeros((len(rows), 0), dtype=np.float32) if stored.probabilities is None else stored.probabilities
    chances = stored.probability[known], stored.true_probability[known], probabilities[known]
    return SplitPredictions(rows[known], stored.predicted[known], *chances), len(rows) - len(known)


def describe_missing(parts: list[HeldOut], root: str) -> str:
    """A sentence, or nothing where no image is missing."""
    missing = sum(part.missing for part in parts)
    return f"{plural(missing, 'image')} of the tables left out: not in {root} now, or under another label" if missing else ""


def root_of(data: ImageData) -> str:
    """`data_root` of a data set."""
    return str(getattr(data, "root", ""))


def _below(root: str, paths: list[str]) -> list[str]:
    prefix = os.path.join(root, "") if root else ""
    return [path.removeprefix(prefix) for path in paths]
