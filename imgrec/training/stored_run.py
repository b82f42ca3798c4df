"""What a run directory holds of a run: config, figures, curves, and what was predicted for each image of the test."""

import csv
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgrec.config.annotations import check_type
from imgrec.config.plain_data import read_mapping
from imgrec.config.ranges import NOT_NEGATIVE
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, DataError, first_line
from imgrec.files import did_you_mean_path
from imgrec.inference.stored_predictions import StoredPredictions, data_root, read_predictions
from imgrec.paths import name_run, newest_runs
from imgrec.training.batch_choice import stored_choice
from imgrec.training.run_dir import RunDir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Codes = NDArray[np.int64]

TEST = {
    "accuracy": float, "accuracy_interval": tuple[float, float], "macro_f1": float, "loss": float, "count": int,
    "per_class": list[dict[str, Any]],
}  # of a result.json  # fmt: skip
_MOST_NAMED = 10  # runs of a folder


@dataclass(frozen=True)
class StoredRun:
    """A run directory, read."""

    path: Path
    config: Node
    result: dict[str, Any] | None  # None: the run is not finished
    epochs: list[dict[str, float]]  # the figures of each epoch; none before the first has ended
    predictions: StoredPredictions | None  # None where there is no table of them

    @property
    def comparable(self) -> StoredPredictions | None:
        """The predictions as those of another run can be compared with them; None where there are none."""
        return self.predictions and self.predictions.by_name(data_root(self.config["data"]))

    @property
    def test(self) -> dict[str, Any] | None:
        """The figures of the test; None of an unfinished run, and where there is no test split."""
        return None if self.result is None else self.result["test"]


class SharedImages(NamedTuple):
    """The images that several runs were tested on."""

    rows: "list[Codes]"  # of each run's predictions, in the same order
    relabelled: int  # images left out, as the runs have them under different classes


def check_run(path: Path, key: str, *, together: str | None = None) -> None:
    """DataError for a path, which was given as `key`, that is no run directory. together: a command that needs two runs or more."""
    if not path.exists():
        raise DataError(
            f"{key}={path}: there is no such folder.{did_you_mean_path(path)} Name run directories such as runs/NAME/ID."
        )
    if not (path / "config.yaml").is_file():
        finished = [run for run in newest_runs(path) if (run / "result.json").is_file()] if together is not None else []
        if len(finished) > 1:
            every = f"{shlex.quote(str(path))}/*/" if set(finished) == set(path.glob("*/")) else None
            raise DataError(
                f"{key}={path} is no run directory. It holds {len(finished)} finished runs. "
                f"Type imgrec {together} {every or shlex.join(map(str, finished[:_MOST_NAMED]))}"
            )
        every = f" For each run in it type {path}/*/" if any(path.glob("*/config.yaml")) else ""
        raise DataError(
            f"{key}={path} is no run directory. {name_run(path, 'Name a run directory such as runs/NAME/ID.')}{every}"
        )


def read_run(path: Path, key: str, *, probabilities: bool = False, together: str | None = None) -> StoredRun:
    """The run in a folder; key, together: as of `check_run`; probabilities: with those of every class, where they were kept.

    DataError for a folder that is no run directory, and for a file in it that was cut or changed.
    """
    check_run(path, key, together=together)
    config = read_mapping(path / "config.yaml", {"data": dict}, fix=f"Leave {path} out.")
    if (choice := stored_choice(RunDir(path, "finished").batch)) is not None:
        config |= {"batch_size": choice.batch_size, "max_device_batch": choice.max_device_batch}
    result = RunDir(path, "finished").result() if (path / "result.json").exists() else None
    if result is not None and not NOT_NEGATIVE.holds(result["train_seconds"]):
        raise DataError(
            f"{path / 'result.json'} was cut or changed: train_seconds={result['train_seconds']}: expected {NOT_NEGATIVE}. "
            "Remove it: the same command then finishes the run again."
        )
    if result is not None and result["test"] is not None:
        check_figures(path / "result.json", result["test"])
    predictions = None if result is None or result["test"] is None else _read_predictions(path, result["test"], probabilities)
    return StoredRun(path, config, result, read_epochs(path), predictions)


def check_figures(
    file: Path, test: dict[str, Any], fix: str = "Remove it: the same command then finishes the run again."
) -> None:
    """DataError, which ends with `fix`, unless `test` has what a reader of the figures of a split needs."""
    try:
        for key, kind in TEST.items():
            check_type(f"test.{key}", test.get(key), kind)
        for row in test["per_class"]:
            check_type("test.per_class.name", row.get("name"), str)
    except ConfigError as error:
        raise DataError(f"{file} was cut or changed: {error} {fix}") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.csv, without empty cells, none where it is missing; of a killed process the last line may be cut short."""
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    whole = (line for line in lines if line.endswith("\n"))
    return [{name: value for name, value in row.items() if value} for row in csv.DictReader(whole)]


def read_epochs(path: Path) -> list[dict[str, float]]:
    """The figures of metrics.csv, without those that an epoch does not have; DataError where it was cut or changed."""
    try:
        epochs = [{name: float(text) for name, text in row.items()} for row in read_rows(path / "metrics.csv")]
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


def _read_predictions(path: Path, test: dict[str, Any], probabilities: bool) -> StoredPredictions | None:
    file = RunDir(path, "finished").prediction_files.predictions
    if not file.exists():
        return None
    classes = [row["name"] for row in test["per_class"]]
    fix = "Remove it to see the run without what needs its images."
    found = read_predictions(file, classes, fix=fix, probabilities=probabilities)
    if len(found.true) != test["count"]:
        raise DataError(f"{file} was cut or changed: it has {len(found.true):,} images, result.json {test['count']:,}. {fix}")
    return found


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
