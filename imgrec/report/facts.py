"""What a report knows of a run, read once from the files of its folder."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from imgrec.config.schema import Node
from imgrec.errors import ConfigError, DataError
from imgrec.inference.stored_predictions import StoredPredictions
from imgrec.report.measured import (
    OF_TEST,
    OF_VALIDATION,
    VALIDATION_FIGURES,
    MeasuredImages,
    evaluate_again,
    read_measured_run,
)
from imgrec.report.stored_values import RESULT_KINDS, check_kinds, confusion_of
from imgrec.training.comparison import run_names
from imgrec.training.stored_run import StoredRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Facts:
    """A run, and what of its content every section needs."""

    run: StoredRun
    name: str  # the last two parts of its folder: digits_resnet/1
    classes: tuple[str, ...]  # C, in the order of the labels; none where there was no test
    confusion: "NDArray[np.int64] | None"  # [C, C], rows are the true classes; None where there was no test
    measured: MeasuredImages = OF_TEST  # what the figures are of

    @property
    def images(self) -> dict[str, dict[str, int]]:
        """Of each split, how many images each class has; empty where the version that trained did not write it."""
        return (self.result or {}).get("images") or {}

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def quoted(self) -> str:
        """The run directory, as a shell takes it."""
        return quote(str(self.folder))

    @property
    def config(self) -> Node:
        """The resolved config."""
        return self.run.config

    @property
    def cut_short(self) -> str | None:
        """The key that left images out of each epoch, with its value; None where all were trained on."""
        limit = (self.config.get("trainer") or {}).get("limit_train_batches")
        return None if limit in (None, 1.0) else f"trainer.limit_train_batches={limit}"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None of a run that is not finished."""
        return self.run.result

    @property
    def test(self) -> dict[str, Any] | None:
        """The figures of the images that `measured` names; None of a run that is not finished, and where there are none."""
        return self.run.test

    @property
    def predictions(self) -> StoredPredictions | None:
        """What was predicted for each of these images, in the order of `classes`; None where there is no table."""
        return self.run.predictions


def read_run_facts(path: Path) -> Facts:
    """DataError for a folder that is no run directory, and for a file in it that was cut or changed."""
    run, measured = read_measured_run(path, probabilities=True)
    if "folds" in run.config:  # its figures are those of validation images
        raise DataError(f"runs={path} has the folds of a cross-validation. Name its runs: {path}/*/.")
    name = run_names([run])[0]
    try:
        check_kinds(run.result or {}, RESULT_KINDS if run.result else {})
        confusion = None if run.test is None else confusion_of(run.test)
    except ConfigError as error:
        file, fix = path / "result.json", "Remove it: the same command then finishes the run again."
        if measured is OF_VALIDATION and str(error).startswith("test."):
            file, fix = path / VALIDATION_FIGURES, evaluate_again(path)
        raise DataError(f"{file} was cut or changed: {error} {fix}") from error
    classes = () if run.test is None else tuple(row["name"] for row in run.test["per_class"])
    return Facts(run, name, classes, confusion, measured)
