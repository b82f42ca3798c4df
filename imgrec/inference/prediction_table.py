"""Rows of predictions as CSV, JSON or Parquet: the same columns and values in each. Imports no torch."""

import csv
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imgrec.errors import ConfigError
from imgrec.files import atomic_write, first_bytes

SUFFIXES = (".csv", ".json", ".parquet")
LEADING_COLUMNS = ["path", "class", "probability"]
PredictionRow = dict[str, Any]


def column_names(top_k: int) -> list[str]:
    """path, class, probability, class_2, probability_2, ..., error."""
    more = [name for k in range(2, top_k + 1) for name in (f"class_{k}", f"probability_{k}")]
    return [*LEADING_COLUMNS, *more, "error"]


def prediction_row(path: str, top: Sequence[tuple[str, float]], *, top_k: int, error: str | None = None) -> PredictionRow:
    """A file's row. Probabilities have six significant digits, about what float32 holds. None where there is no value."""
    values: list[str | float | None] = [value for name, probability in top for value in (name, float(f"{probability:.6g}"))]
    values += [None] * (2 * top_k - len(values))
    return dict(zip(column_names(top_k), [path, *values, error], strict=True))


def check_parquet(path: Path) -> None:
    """ConfigError for a .parquet where pyarrow is not installed."""
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        other = path.with_suffix(".csv")
        raise ConfigError(
            f'out={path} needs pyarrow, which is not installed. Type: pip install "imgrec[parquet]", or set out={other}.'
        )


def write_table(path: Path, rows: Sequence[PredictionRow], *, top_k: int) -> None:
    """Write rows in the format of the file's suffix; DataError where they cannot be written."""
    writers = {".csv": _csv, ".json": _json, ".parquet": _parquet}
    atomic_write(path, writers[path.suffix](rows, column_names(top_k)))


def written_by_us(path: Path) -> bool:
    """Whether the file begins as `write_table` begins it."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names: list[str] = pq.read_schema(path).names
        except (pa.ArrowInvalid, OSError):
            return False
        return names[:3] == LEADING_COLUMNS
    start = {".csv": ",".join(LEADING_COLUMNS) + ",", ".json": '[\n{"path": '}[path.suffix]
    return first_bytes(path).startswith(start.encode())


def _csv(rows: Sequence[PredictionRow], names: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None becomes nothing
    return text.getvalue().encode(errors="surrogateescape")  # a file name's own bytes, also where they are no UTF-8


def _json(rows: Sequence[PredictionRow], names: list[str]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode()


def _parquet(rows: Sequence[PredictionRow], names: list[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.float64() if name.startswith("probability") else pa.string()) for name in names])
    # Parquet's strings are UTF-8 by definition; other bytes in a file name become '?'.
    legal = [{k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(legal, schema=schema), sink)
    return sink.getvalue()
