"""Which images of a test a report shows, what they are called, and small pictures of them."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imgrec.analysis.confusions import first_of_each_cell, largest_confusions, most_certain_errors
from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.data.decode import Preprocessing
from imgrec.data.folder import ImageFiles
from imgrec.data.image_set import ImageSet
from imgrec.errors import ImgrecError, first_line, printable, shorten
from imgrec.files import as_utf8
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.stored_predictions import StoredPredictions, data_root
from imgrec.paths import find_checkpoint
from imgrec.report.facts import Facts
from imgrec.report.measured import OF_TEST, OF_VALIDATION, MeasuredImages
from imgrec.report.thumbnails import THUMB_SIDE, read_thumbnails

# So that a report of 1,000 classes stays below 3 MB, which its class table and its matrix share.
_PICTURES = 1_100_000  # letters
_MOST_PICTURES = 400  # photographs that are decoded in 3 s
ERROR_NAMES, RIGHT_NAMES = 350_000, 100_000  # letters of the images that a cell of the matrix lists
ERRORS_OF_CELL, RIGHT_OF_CELL = 12, 3
PICTURED_PAIRS, PICTURES_OF_PAIR = 20, 5
_MOST_TILES = 24  # worst errors, and least certain images


@dataclass(frozen=True)
class ShownImages:
    """The rows of a test's table that a report shows, in groups, and their pictures."""

    predictions: StoredPredictions
    names: dict[int, str]  # by row: the path below data.root, or the number of the image
    pair_rows: list[Indices]  # of each of `largest_confusions`, the most certain first
    worst: Indices
    unsure: Indices
    cells: Indices  # what the cells of the matrix list
    changed: dict[int, str]  # of a run that added classes, rows whose answer changed, with the one before
    pictures: dict[int, str]  # data URLs by row, as far as the budget goes
    side: int  # pixels of the images
    missing: str | None  # a sentence that says why there are no pictures

    @cached_property
    def enlarged(self) -> bool:
        """Whether pictures are shown with larger pixels."""
        return self.side <= THUMB_SIDE // 2


def shown_images(facts: Facts, confusion: "np.ndarray[Any, np.dtype[np.int64]]") -> ShownImages | None:
    """What a report shows of its test; None where no table says which image was predicted as what."""
    table = facts.predictions
    if table is None or table.probability is None or table.true_probability is None:
        return None
    true, predicted = table.true, table.predicted
    errors = most_certain_errors(true, predicted, table.probability, table.true_probability)
    least = np.argsort(table.probability, kind="stable")
    right = least[true[least] == predicted[least]]
    pairs = largest_confusions(confusion, PICTURED_PAIRS)
    pair_rows = [errors[(true[errors] == one) & (predicted[errors] == other)][:PICTURES_OF_PAIR] for one, other, _ in pairs]
    worst, unsure = errors[:_MOST_TILES], least[:_MOST_TILES]
    of_errors = _within(table, first_of_each_cell(true, predicted, errors, ERRORS_OF_CELL), ERROR_NAMES)
    cells = np.concatenate([of_errors, _within(table, first_of_each_cell(true, predicted, right, RIGHT_OF_CELL), RIGHT_NAMES)])
    changed = _changed(facts, table)
    wanted = np.concatenate([np.array(list(changed), dtype=np.int64), worst, *pair_rows, unsure, cells])
    rows = wanted[np.sort(np.unique(wanted, return_index=True)[1])]
    root = as_utf8(os.path.join(data_root(facts.config["data"]), ""))
    names = {row: _name(table, value, root) for row, value in zip(rows.tolist(), table.names.take(rows).to_pylist(), strict=True)}
    pictures, missing = _pictures(facts, table, rows[:_MOST_PICTURES])
    side = int(facts.config["data"]["image_size"])
    return ShownImages(table, names, pair_rows, worst, unsure, cells, changed, pictures, side, missing)


def _changed(facts: Facts, table: StoredPredictions) -> dict[int, str]:
    """What imgrec.training.extension stored of them, where the table is still that of the run's test."""
    old = ((facts.result or {}).get("extended") or {}).get("old") or {}
    shown = {row["row"]: row["before"] for row in old.get("shown") or []} if facts.measured is OF_TEST else {}
    return shown if all(row < len(table.true) for row in shown) else {}


def _within(table: StoredPredictions, rows: Indices, letters: int) -> Indices:
    """The first rows, whose names have so many letters together."""
    import pyarrow.compute as pc

    names = table.names.take(rows)
    lengths = pc.utf8_length(names).to_numpy() if table.key == "path" else np.full(len(rows), 12)
    return rows[np.cumsum(lengths + 20) <= letters]


def _name(table: StoredPredictions, value: Any, root: str) -> str:
    return printable(value.removeprefix(root)) if table.key == "path" else f"image {value}"


def _pictures(facts: Facts, table: StoredPredictions, rows: Indices) -> tuple[dict[int, str], str | None]:
    """Data URLs by row, and where there are none a sentence why."""
    if not len(rows):
        return {}, None
    try:
        images, places, rows = _find_images(facts, table, rows)
    except ImgrecError as error:
        return {}, f"The images {facts.measured.of} could not be read again: {first_line(error)}."
    found = read_thumbnails(images, places, budget=_PICTURES)
    pictures = {row: found[place] for row, place in zip(rows.tolist(), places.tolist(), strict=True) if place in found}
    if pictures:
        return pictures, None
    where = f", such as {shorten(table.names[int(rows[0])])}" if table.key == "path" else ""
    return {}, f"There are no pictures, as the images {facts.measured.of} are not found{where}."


def _find_images(facts: Facts, table: StoredPredictions, rows: Indices) -> tuple[ImageSet, Indices, Indices]:
    """Images, and which of them are those of which rows."""
    data = facts.config["data"]
    names = table.names.take(rows)
    if table.key == "path" and any(map(os.path.isfile, names.to_pylist())):  # without a listing of all images
        preprocessing = Preprocessing(**{key: data[key] for key in Preprocessing.__annotations__})  # type: ignore[typeddict-item]
        paths = np.array([os.fsencode(path) for path in names.to_pylist()], dtype=np.bytes_)
        labels = np.zeros(len(rows), dtype=np.int64)
        reading = {"on_bad_image": "refuse", "on_bad_image_eval": "refuse", "decoder": data.get("decoder", "auto")}
        files = ImageFiles("", paths, labels, preprocessing=preprocessing, **reading)
        return files, np.arange(len(rows)), rows
    return find_in_split(facts.folder, table, rows, facts.measured)


def find_in_split(
    run: Path, table: StoredPredictions, rows: Indices, measured: MeasuredImages = OF_TEST
) -> tuple[ImageSet, Indices, Indices]:
    """The measured images by the checkpoint of a run directory, and which of them are those of which rows; DataError where they are gone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    split: Split = "val" if measured is OF_VALIDATION else "test"
    images = evaluation_images(load_checkpoint(find_checkpoint(run)), split=split, folder=None, changes={}).images
    names = table.names.take(rows)
    if table.key == "index" or images.names is None:
        return images, names.to_numpy().astype(np.int64), rows  # a copy, as torch warns of arrays that are not writable
    root = images.root if isinstance(images, ImageFiles) else ""
    known = pa.array([as_utf8(os.path.join(root, os.fsdecode(name))) for name in images.names.tolist()], pa.string())
    places = pc.fill_null(pc.index_in(names, value_set=known), -1).to_numpy().astype(np.int64)
    return images, places[places >= 0], rows[places >= 0]
