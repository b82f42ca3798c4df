"""What a run directory holds of a run: config, figures, curves, and what was predicted for each image of the test."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgrec.config.annotations import check_type
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, DataError, first_line
from imgrec.files import LEADING_COLUMNS
from imgrec.training.run_dir import RunDir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Codes = NDArray[np.int64]

TEST = {"accuracy": float, "macro_f1": float, "loss": float, "count": int, "per_class": list[dict[str, Any]]}  # of a result.json


class StoredPredictions(NamedTuple):
    """The classes of the images of a test, and what was predicted, as numbers in the order of `classes`."""

    key: str  # "path" or "index": by what an image is found
    names: Any  # pyarrow's array [N]: the path within data.root, or the index in the split
    true: "Codes"  # [N]
    predicted: "Codes"  # [N]
    classes: tuple[str, ...]  # sorted


@dataclass(frozen=True)
class StoredRun:
    """A run directory, read."""

    path: Path
    config: Node
    result: dict[str, Any] | None  # None: the run is not finished
    epochs: list[dict[str, float]]  # the figures of each epoch; none before the first has ended
    predictions: StoredPredictions | None  # None where there is no table of them

    @property
    def test(self) -> dict[str, Any] | None:
        """The figures of the test; None of an unfinished run, and where there is no test split."""
        return None if self.result is None else self.result["test"]


class SharedImages(NamedTuple):
    """The images that several runs were tested on."""

    rows: "list[Codes]"  # of each run's predictions, in the same order
    relabelled: int  # images left out, as the runs have them under different classes


def read_run(path: Path, key: str) -> StoredRun:
    """The run in a folder, which was given as `key`. DataError for a folder that is no run directory, and for a file in it that was cut or changed."""
    if not path.exists():
        raise DataError(f"{key}={path}: there is no such folder. Name run directories such as runs/NAME/ID.")
    if not (path / "config.yaml").is_file():
        raise DataError(f"{key}={path} is no run directory.{_runs_near(path)}")
    config = read_mapping(path / "config.yaml", {"data": dict}, fix=f"Leave {path} out.")
    result = RunDir(path, "finished").result() if (path / "result.json").exists() else None
    if result is not None and result["test"] is not None:
        _check_test(path / "result.json", result["test"])
    predictions = None if result is None or result["test"] is None else _read_predictions(path, config, result["test"])
    return StoredRun(path, config, result, read_epochs(path), predictions)


def _runs_near(path: Path) -> str:
    """What to type for a folder of runs, or for a file in a run."""
    if path.is_dir() and any(path.glob("*/config.yaml")):
        return f" For the runs in it type {path}/*/."
    inside = next((parent for parent in path.parents if (parent / "config.yaml").is_file()), None)
    return f" Type {inside}." if inside is not None else " Name folders such as runs/NAME/ID, which hold a config.yaml."


def _check_test(file: Path, test: dict[str, Any]) -> None:
    try:
        for key, kind in TEST.items():
            check_type(f"test.{key}", test.get(key), kind)
        for row in test["per_class"]:
            check_type("test.per_class.name", row.get("name"), str)
    except ConfigError as error:
        raise DataError(f"{file} was cut or changed: {error} Remove it: the same command then finishes the run again.") from error


def metrics_rows(folder: str | Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, one an epoch; none where no epoch has ended."""
    file = Path(folder) / "metrics.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


def read_epochs(path: Path) -> list[dict[str, float]]:
    """The figures of metrics.csv, without those that an epoch does not have; DataError where it was cut or changed."""
    try:
        rows = metrics_rows(path)
        epochs = [{name: float(text) for name, text in row.items() if text} for row in rows]
        if any("epoch" not in row for row in epochs):
            raise ValueError("a row without an epoch")
    except (ValueError, TypeError, OSError, csv.Error) as error:  # TypeError: more values than columns are a list
        file = path / "metrics.csv"
        raise DataError(
            f"{file} was cut or changed: {first_line(error)}. Remove it to see the run without its curves."
        ) from error
    return epochs


def curve(run: StoredRun, name: str) -> tuple[list[float], list[float]]:
    """The epochs that have a figure, and the figure."""
    points = [(row["epoch"], row[name]) for row in run.epochs if math.isfinite(row.get(name, math.nan))]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _read_predictions(path: Path, config: Node, test: dict[str, Any]) -> StoredPredictions | None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = RunDir(path, "finished").prediction_files.predictions
    if not file.exists():
        return None
    classes = tuple(sorted({str(row["name"]) for row in test["per_class"]}))
    try:
        key = pq.read_schema(file).names[0]
        if [key, "true", "predicted"] not in LEADING_COLUMNS:
            raise ValueError(f"its first column is {key}")
        table = pq.read_table(file, columns=[key, "true", "predicted"])
        names = table[key].combine_chunks()
        codes = [pc.index_in(table[name].combine_chunks(), value_set=pa.array(classes)) for name in ("true", "predicted")]
        if any(column.null_count for column in codes):
            raise ValueError("it has classes that result.json has not")
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} was cut or changed: {first_line(error)}. Remove it to compare the run without tests on its images."
        ) from error
    root = os.path.join(str(config["data"].get("root") or ""), "")
    # Below data.root, as the folder may have moved between two runs.
    if key == "path" and root and pc.all(pc.starts_with(names, pattern=root)).as_py():
        names = pc.utf8_slice_codeunits(names, start=len(root))
    true, predicted = (column.to_numpy().astype(np.int64) for column in codes)
    return StoredPredictions(key, names, true, predicted, classes)


def shared_images(tests: Sequence[StoredPredictions]) -> SharedImages:
    """The images that are in each of several tests, found by name, in the order of the first; none where the tests are of other data.

    An index names an image only within one split, so tests by index share images where the classes of all of these are the same.
    """
    import numpy as np
    import pyarrow.compute as pc

    first = tests[0]
    if any((test.key, test.classes) != (first.key, first.classes) for test in tests):
        return SharedImages([np.empty(0, np.int64) for _ in tests], 0)
    positions = [pc.index_in(first.names, value_set=test.names) for test in tests]
    found = np.all([column.is_valid().to_numpy(zero_copy_only=False) for column in positions], axis=0)
    rows = [column.fill_null(0).to_numpy().astype(np.int64)[found] for column in positions]
    same = np.all([test.true[row] == first.true[rows[0]] for test, row in zip(tests, rows, strict=True)], axis=0)
    if first.key == "index" and not same.all():
        same[:] = False
    return SharedImages([row[same] for row in rows], int((~same).sum()) if first.key == "path" else 0)
