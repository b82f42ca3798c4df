"""Which images of its test a run was right about, by the table that the test wrote."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.errors import ConfigError, DataError
from imgrec.inference.paths import find_checkpoint

TABLES = ("predictions.parquet", "evaluate_test_predictions.parquet")  # of the run, and of `imgrec evaluate RUN`


class RunTest(NamedTuple):
    """The images of a test, in the order of its table."""

    paths: NDArray[np.object_]  # absolute
    correct: NDArray[np.bool_]


def find_test_table(ckpt: str) -> Path:
    """The table of the test beside a checkpoint; ConfigError where there is none."""
    folder = find_checkpoint(ckpt).parent
    for table in (place / name for place in (folder.parent, folder) for name in TABLES):
        if table.is_file():
            return table
    raise ConfigError(
        f"ckpt={ckpt}: {folder.parent} has no {TABLES[0]} of a test. Type imgrec evaluate {ckpt}, which writes one."
    )


def read_test_table(table: Path) -> RunTest:
    """DataError for a table that is damaged, or whose images have no paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(table, columns=["path", "true", "predicted"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{table} cannot be read as a table with path, true and predicted. Type imgrec evaluate RUN.") from error
    path, true, predicted = (column.to_numpy() for column in columns.columns)
    return RunTest(np.array([os.path.abspath(name) for name in path.tolist()], dtype=object), np.asarray(true == predicted))
