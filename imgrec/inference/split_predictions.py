"""What a network predicts for each image of a split, and the files that show it: the errors, and a table of all images."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.analysis.confusions import most_certain_errors
from imgrec.analysis.scores import ProbabilityScores, probability_scores
from imgrec.data.batch import Indices, Request
from imgrec.data.folder import ImageFiles
from imgrec.data.image_set import ImageSet
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import plural
from imgrec.files import atomic_write
from imgrec.inference.contact_sheet import MOST_TILES, draw_contact_sheet, tiles_in_a_row
from imgrec.inference.picture_text import class_labels
from imgrec.inference.prediction_table import Columns, PredictionFiles, six_digits, write_table
from imgrec.terminal import percent

MOST_PROBABILITIES = 20_000_000  # images times classes up to which the probability of every class is kept: 80 MB
ROWS = 65_536  # of a table that are written at once


class SplitPredictions(NamedTuple):
    """What was predicted for the images of a split that could be read, in its order."""

    indices: Indices  # [N], in the split
    predicted: Indices  # [N]
    probability: NDArray[np.float32]  # [N], of the predicted class
    true_probability: NDArray[np.float32]  # [N], of the label
    probabilities: NDArray[np.float32]  # [N, K]; [N, 0] above MOST_PROBABILITIES
    uncalibrated: NDArray[np.float32] | None = None  # [N], `probability` without the temperature; None where there is none


class PredictionCollector:
    """The predictions of this rank so far, on the device, so that no batch waits for it: 24 bytes an image, and MOST_PROBABILITIES."""

    def __init__(self, *, images: int, classes: int) -> None:
        """images: how many the split has, over all ranks."""
        self.kept = classes if images * classes <= MOST_PROBABILITIES else 0
        self._batches: list[tuple[Tensor, ...]] = []

    def update(
        self, logits: Tensor, probabilities: Tensor, labels: Tensor, indices: Tensor, uncalibrated: Tensor | None = None
    ) -> None:
        """Of a batch: float [B, K], float [B, K], int64 [B], int64 [B]. The class is the logits' best, as in the confusion matrix.

        uncalibrated: the probabilities without a temperature, where they are others.
        """
        predicted = logits.argmax(dim=1)
        both = probabilities.gather(1, torch.stack([predicted, labels], dim=1)).float()
        whole = probabilities if self.kept else probabilities.new_empty(len(labels), 0)  # a slice would keep all of it
        without = () if uncalibrated is None else (uncalibrated.gather(1, predicted[:, None])[:, 0].float(),)
        self._batches.append((indices, predicted, both[:, 0], both[:, 1], whole.float(), *without))

    def gather(self, group: WorkerGroup) -> SplitPredictions | None:
        """The predictions of all ranks on rank 0, None on the others; all must call it. Then it is empty."""
        whole = gather_columns(self._batches, group)
        return None if whole is None else SplitPredictions(*whole)


class LogitCollector:
    """The logits of images of a split on this rank, on the device; of many images only each n-th, up to MOST_PROBABILITIES numbers."""

    def __init__(self, *, images: int, classes: int) -> None:
        """images: how many the split has, over all ranks."""
        self.every = max(1, -(-images * classes // MOST_PROBABILITIES))
        self._batches: list[tuple[Tensor, ...]] = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Of a batch: float [B, K], int64 [B], int64 [B]."""
        kept = indices % self.every == 0
        self._batches.append((indices[kept], logits[kept].float(), labels[kept]))

    def gather(self, group: WorkerGroup) -> tuple[Tensor, Tensor] | None:
        """Logits float32 [N, K] and labels int64 [N] of all ranks in the split's order on rank 0, None on the others; all must call it."""
        whole = gather_columns(self._batches, group)
        return None if whole is None else (torch.from_numpy(whole[1]), torch.from_numpy(whole[2]))


def gather_columns(batches: list[tuple[Tensor, ...]], group: WorkerGroup) -> list[NDArray[Any]] | None:
    """The columns of the batches of all ranks on rank 0, sorted by the first, which are indices; `batches` is then empty."""
    columns = tuple(torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True))
    batches.clear()
    shares = [share for share in group.gather([columns]) if share]
    if group.rank > 0:
        return None
    whole = [np.concatenate(column) for column in zip(*shares, strict=True)]
    order = whole[0].argsort()
    return [column[order] for column in whole]


def scores_of(predictions: SplitPredictions | None, images: ImageSet, group: WorkerGroup) -> ProbabilityScores:
    """The scores of the predictions that rank 0 has gathered, on every rank; all must call it."""
    group.set_status("scoring the probabilities")
    scores = None
    if predictions is not None:
        labels = images.labels[predictions.indices]
        scores = probability_scores(predictions.probabilities, predictions.true_probability, labels)
    shared = group.all_gather(scores)[0]
    assert shared is not None
    return shared


def worst_errors(predictions: SplitPredictions, images: ImageSet) -> Indices:
    """Rows of the predictions that are wrong: the most probable first, of equal ones the one whose class is the least probable."""
    true = images.labels[predictions.indices]
    return most_certain_errors(true, predictions.predicted, predictions.probability, predictions.true_probability)


def write_predictions(files: PredictionFiles, predictions: SplitPredictions, images: ImageSet, classes: Sequence[str]) -> str:
    """Writes the files, and gives a sentence that names them. DataError where one cannot be written."""
    errors = worst_errors(predictions, images)
    write_table(files.errors, _error_rows(predictions, images, classes, errors))
    write_table(files.predictions, _all_rows(predictions, images, classes))
    said = f"{plural(len(errors), 'error')} in {files.errors}"
    if files.sheet is not None and len(errors):
        atomic_write(files.sheet, _draw(predictions, images, classes, errors))
        said += f", the worst in {files.sheet.name}"
    elif files.sheet is not None:
        files.sheet.unlink(missing_ok=True)  # of an earlier test, which had errors
    return f"{said}; every prediction in {files.predictions.name}"


def _draw(predictions: SplitPredictions, images: ImageSet, classes: Sequence[str], errors: Indices) -> bytes:
    shown = errors[:MOST_TILES]
    rows = predictions.indices[shown]
    pairs = np.stack([images.labels[rows], predictions.predicted[shown]], axis=1)
    named = np.unique(pairs).tolist()
    labels, legend, fonts = class_labels(classes, named, width=20, line=20 * tiles_in_a_row(len(shown)))
    names = dict(zip(named, labels, strict=True))
    captions = [
        f"{names[true]}\n\u2192 {names[predicted]}\n{percent(probability)}"
        for (true, predicted), probability in zip(pairs.tolist(), predictions.probability[shown], strict=True)
    ]
    # Without images that cannot be read any more, where the run leaves such images out.
    batch = images[Request(0, rows, len(rows))]
    captions = [caption for row, caption in zip(rows, captions, strict=True) if row in batch.indices]
    title = f"true \u2192 predicted: the first {len(shown)} of {plural(len(errors), 'error')}, the most probable first"
    return draw_contact_sheet(batch.images, captions, title=title, legend=legend, fonts=fonts)


def _error_rows(predictions: SplitPredictions, images: ImageSet, classes: Sequence[str], errors: Indices) -> Iterator[Columns]:
    for start in range(0, max(1, len(errors)), ROWS):
        columns = _columns(predictions, images, classes, errors[start : start + ROWS])
        chances = {name: list(map(six_digits, values.tolist())) for name, values in columns.items() if "probability" in name}
        yield columns | chances


def _all_rows(predictions: SplitPredictions, images: ImageSet, classes: Sequence[str]) -> Iterator[Columns]:
    for start in range(0, len(predictions.indices), ROWS):
        rows = np.arange(start, min(start + ROWS, len(predictions.indices)))
        whole = {"probabilities": predictions.probabilities[rows]} if predictions.probabilities.shape[1] else {}
        yield _columns(predictions, images, classes, rows) | whole


def _columns(predictions: SplitPredictions, images: ImageSet, classes: Sequence[str], rows: Indices) -> dict[str, Any]:
    """The image, its class and the predicted one as lists, the probabilities of both as arrays."""
    found, names = predictions.indices[rows], np.array(classes, dtype=object)
    return {
        **image_column(images, found),
        "true": names[images.labels[found]].tolist(),
        "predicted": names[predictions.predicted[rows]].tolist(),
        "probability": predictions.probability[rows],
        "true_probability": predictions.true_probability[rows],
    }


def image_column(images: ImageSet, rows: Indices) -> dict[str, Any]:
    """By what an image is found: its path, or where images have no names its index in the split."""
    if images.names is None:
        return {"index": rows}
    root = images.root if isinstance(images, ImageFiles) else ""  # a table's names may be absolute
    return {"path": [os.path.join(root, os.fsdecode(name)) for name in images.names[rows].tolist()]}
