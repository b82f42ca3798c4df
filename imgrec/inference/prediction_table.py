"""Predictions as CSV, JSON or Parquet: the same columns and values in each. Imports no torch."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from imgrec.files import LEADING_COLUMNS, as_utf8, atomic_output, check_output, is_our_png, is_our_table

SUFFIXES = (".csv", ".json", ".parquet")
SET = "set"  # the column of coverage=, with a list of names in each row
ANSWER = "answer"  # the column of risk=

if TYPE_CHECKING:
    from numpy.typing import NDArray

PredictionRow = dict[str, Any]
Columns = Mapping[str, "Sequence[Any] | NDArray[Any]"]  # equally long


class PredictionFiles(NamedTuple):
    """The files that show what a network predicts for each image of a test; sheet None: no picture."""

    errors: Path  # a table of those with another class than theirs
    sheet: Path | None  # a picture of the first of them
    predictions: Path  # a table of all images
    reliability: Path | None = None  # a picture of how far the probabilities hold


class EvaluationFiles(NamedTuple):
    """The checkpoint of an evaluation, and the files that it writes; None: no picture."""

    ckpt: Path
    out: Path
    plot: Path | None
    slices: Path | None
    corruptions: Path | None
    predictions: PredictionFiles


def check_prediction_files(start: Path, *, sheet: bool, overwrite: bool) -> PredictionFiles:
    """START_errors.csv and so on, each checked."""
    names = ("errors.csv", "errors.png", "predictions.parquet", "reliability.png")
    errors, picture, predictions, reliability = (start.with_name(f"{start.name}_{name}") for name in names)
    for table in (errors, predictions):
        check_output("out", table, (table.suffix,), ours=is_our_table, overwrite=overwrite)
    for drawn in (picture, reliability) if sheet else ():
        check_output("out", drawn, (drawn.suffix,), ours=is_our_png, overwrite=overwrite)
    return PredictionFiles(errors, picture if sheet else None, predictions, reliability if sheet else None)


def column_names(top_k: int, *, added: Iterable[str] = ()) -> list[str]:
    """path, class, probability, class_2, probability_2, ..., what is added, error."""
    more = [name for k in range(2, top_k + 1) for name in (f"class_{k}", f"probability_{k}")]
    return [*LEADING_COLUMNS[0], *more, *added, "error"]


def prediction_row(
    path: str, top: Sequence[tuple[str, float]], *, top_k: int, added: Mapping[str, Any] | None = None, error: str | None = None
) -> PredictionRow:
    """A file's row. None where there is no value. A list of names in `added` is one value."""
    values: list[str | float | None] = [value for name, probability in top for value in (name, six_digits(probability))]
    values += [None] * (2 * top_k - len(values))
    added = added or {}
    return dict(zip(column_names(top_k, added=added), [path, *values, *added.values(), error], strict=True))


def six_digits(probability: float) -> float:
    """Six significant digits, about what float32 holds."""
    return float(f"{probability:.6g}")


def write_table(path: Path, parts: Iterable[Columns]) -> None:
    """Write a table, one part of its rows after the other, in the format of the suffix; DataError where it cannot be written."""
    with atomic_output(path) as file:
        {".csv": _csv, ".json": _json, ".parquet": _parquet}[path.suffix](file, parts)


def _csv(file: BinaryIO, parts: Iterable[Columns]) -> None:
    for number, part in enumerate(parts):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not number:
            writer.writerow(part)
        columns = [[_joined(value) for value in values] if name == SET else values for name, values in part.items()]
        writer.writerows(zip(*columns, strict=True))  # None becomes nothing
        file.write(text.getvalue().encode(errors="surrogateescape"))  # a file name's own bytes, also where they are no UTF-8


def _joined(names: list[str] | None) -> str | None:
    return None if names is None else "; ".join(names)


def _as_utf8(value: str | list[str] | None) -> Any:
    return list(map(_as_utf8, value)) if isinstance(value, list) else value and as_utf8(value)


def _json(file: BinaryIO, parts: Iterable[Columns]) -> None:
    rows = (json.dumps(dict(zip(part, row, strict=True))) for part in parts for row in zip(*part.values(), strict=True))
    for number, row in enumerate(rows):
        file.write((",\n" if number else "[\n").encode() + row.encode())
    file.write(b"\n]\n")


def _parquet(file: BinaryIO, parts: Iterable[Columns]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    def array(name: str, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            flat = pa.array(values.reshape(-1))
            return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        if name.startswith("probability"):
            return pa.array(values, pa.float64())
        kind = pa.list_(pa.string()) if name == SET else pa.string()
        try:
            return pa.array(values, kind)
        except UnicodeEncodeError:  # Parquet's strings are UTF-8 by definition; other bytes in a file name become '?'
            return pa.array(list(map(_as_utf8, values)), kind)

    writer = None
    for part in parts:
        table = pa.table({name: array(name, values) for name, values in part.items()})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None, "a table has at least one part"
    writer.close()
