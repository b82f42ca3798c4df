"""Which images the figures of a report are of: those of the test, without one those of validation."""

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from imgrec.config.plain_data import read_mapping
from imgrec.inference.stored_predictions import read_predictions
from imgrec.training.measured_file import measured_weights
from imgrec.training.stored_run import StoredRun, check_figures, read_run

VALIDATION_FIGURES, VALIDATION_TABLE = "evaluate_val.json", "evaluate_val_predictions.parquet"  # of imgrec evaluate RUN split=val

EVALUATED = {"weights": str, "folder": str | None, "tta": str | None, "image_size": int, "figures": dict}


class MeasuredImages(NamedTuple):
    """What these images are called in a report."""

    accuracy: str  # the first figure
    of: str  # "of the test"
    column: str  # of a table: "in test"


OF_TEST = MeasuredImages("test accuracy", "of the test", "in test")
OF_VALIDATION = MeasuredImages("validation accuracy", "of validation", "in val")


def read_measured_run(path: Path, *, probabilities: bool = False) -> tuple[StoredRun, MeasuredImages]:
    """A run and what its `test` is of. Without a test split these are the figures of `imgrec evaluate RUN split=val`, where that was typed.

    DataError as of `read_run`.
    """
    run = read_run(path, "runs", probabilities=probabilities)
    if run.result is None:
        return run, OF_TEST
    figures = _validation_figures(run) if run.test is None else None
    if figures is None:
        return run, OF_TEST
    classes = [row["name"] for row in figures["per_class"]]
    table = read_predictions(path / VALIDATION_TABLE, classes, fix=evaluate_again(path), probabilities=probabilities)
    return replace(run, result=run.result | {"test": figures}, predictions=table), OF_VALIDATION


def without_table(path: Path) -> str:
    """The error where images of a run are shown that its predictions name, and there are none."""
    return f"images=null: {path} has no table of a test, which has its errors. Set images=FOLDER."


def evaluate_again(path: Path) -> str:
    """What to type where the figures of validation are damaged."""
    return f"Type imgrec evaluate {quote(str(path))} split=val, which writes them anew."


def _validation_figures(run: StoredRun) -> dict[str, Any] | None:
    """None where there are none of the weights that the run ended with and of its images as they were."""
    file = run.path / VALIDATION_FIGURES
    if not file.is_file() or not (run.path / VALIDATION_TABLE).is_file():
        return None
    found = read_mapping(file, EVALUATED, fix=evaluate_again(run.path))
    assert run.result is not None
    if [found[key] for key in ("weights", "folder", "tta", "image_size")] != [
        measured_weights(run.result),
        None,
        None,
        run.config["data"].get("image_size"),
    ]:
        return None
    figures: dict[str, Any] = found["figures"]
    check_figures(file, figures, fix=evaluate_again(run.path))
    return figures
