"""The table of a test, predictions.parquet, read again: what was predicted for each of its images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgrec.config.plain_data import check_regular
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, DataError, first_line
from imgrec.files import LEADING_COLUMNS, as_utf8
from imgrec.paths import CHECKPOINTS, find_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Codes = NDArray[np.int64]

ROUNDING = 1e-4  # of a probability in 16 bits, above 1
TABLES = ("predictions.parquet", "evaluate_test_predictions.parquet")  # of the run, and of `imgrec evaluate RUN`


class StoredPredictions(NamedTuple):
    """What was predicted for each of N images; classes are numbers in the order of `classes`."""

    key: str  # "path" or "index": by what an image is found
    names: Any  # pyarrow's array [N]: the path, or the index in the split
    true: "Codes"  # [N]
    predicted: "Codes"  # [N]
    classes: tuple[str, ...]  # C
    probability: "NDArray[np.float32] | None" = None  # [N], of the predicted class; these three are None where the table has none
    true_probability: "NDArray[np.float32] | None" = None  # [N]
    probabilities: "NDArray[np.float32] | None" = None  # [N, C]; None also where they were not kept, or not asked for

    def by_name(self, root: str) -> "StoredPredictions":
        """The same as another run can have it, without the probabilities: classes sorted, paths below `root`, which may have moved."""
        import numpy as np
        import pyarrow.compute as pc

        names, folder = self.names, as_utf8(os.path.join(root, ""))
        if self.key == "path" and root and pc.all(pc.starts_with(names, pattern=folder)).as_py():
            names = pc.utf8_slice_codeunits(names, start=len(folder))
        place = np.argsort(np.argsort(np.array(self.classes, dtype=object)))
        classes = tuple(sorted(self.classes))
        return StoredPredictions(self.key, names, place[self.true], place[self.predicted], classes)


def data_root(data: Node) -> str:
    """The folder below which a run has its images, by the keys of its data; nothing for sets in memory."""
    return str(data.get("root") or os.path.dirname(data.get("file") or "") or ("." if "file" in data else ""))


def is_folds_folder(path: str) -> bool:
    """Whether it is the folder of finished `imgrec train folds=K`."""
    folder = Path(path)
    return not (folder / CHECKPOINTS).exists() and (folder / "1" / CHECKPOINTS).is_dir() and (folder / TABLES[0]).is_file()


def find_test_table(ckpt: str) -> Path:
    """The table of the test beside a checkpoint; ConfigError where there is none."""
    folder = find_checkpoint(ckpt).parent
    for table in (place / name for place in (folder.parent, folder) for name in TABLES):
        if table.is_file():
            return table
    raise ConfigError(
        f"ckpt={ckpt}: {folder.parent} has no {TABLES[0]} of a test. Type imgrec evaluate {ckpt}, which writes one where its data has a test split."
    )


def read_predictions(file: Path, classes: Sequence[str] | None, *, fix: str, probabilities: bool = False) -> StoredPredictions:
    """The table. classes: C names in the order of the column `probabilities`; None: those in it, sorted. DataError, which ends with `fix`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    check_regular(file, fix)
    optional = ("probability", "true_probability", *(("probabilities",) if probabilities else ()))
    try:
        with file.open("rb") as source:  # pyarrow takes no path that is no UTF-8
            opened = pq.ParquetFile(source)  # pq.read_table imports pandas, where it is there: 0.2 s
            found = opened.schema_arrow.names
            if found[:3] not in LEADING_COLUMNS or found[1] != "true":
                raise ValueError(f"its first columns are {', '.join(found[:3])}")
            table = opened.read(columns=[*found[:3], *(name for name in optional if name in found)])
        if not table.num_rows or any(column.null_count for column in table.columns):
            raise ValueError("it has no rows" if not table.num_rows else "it has empty cells")
        if not (pa.types.is_integer if found[0] == "index" else pa.types.is_string)(table[found[0]].type):
            raise ValueError(f"its column {found[0]} has other values")
        labels = [table[name].combine_chunks() for name in ("true", "predicted")]
        if classes is None:
            classes = sorted({name for column in labels for name in pc.unique(column).to_pylist()})
        named = list(map(as_utf8, classes))
        if len(set(named)) < len(named):
            raise ValueError("it does not tell classes apart whose names are no UTF-8: rename their folders")
        codes = [pc.index_in(column, value_set=pa.array(named, pa.string())) for column in labels]
        if any(column.null_count for column in codes):
            raise ValueError("it has classes that result.json has not")
        columns = {name: table[name].combine_chunks() for name in optional if name in found}
        chances = {name: column.to_numpy() for name, column in columns.items() if name != "probabilities"}
        if "probabilities" in columns:
            if not pa.types.is_fixed_size_list(columns["probabilities"].type):
                raise ValueError("its column probabilities has other values")
            chances["probabilities"] = columns["probabilities"].flatten().to_numpy().reshape(table.num_rows, len(classes))
        for name, values in chances.items():
            if values.dtype.kind != "f" or not ((values >= 0) & (values < 1 + ROUNDING)).all():
                raise ValueError(f"its column {name} has values that are no probabilities")
    except (pa.ArrowException, OSError, ValueError, IndexError, KeyError) as error:  # KeyError: two columns of a name
        raise DataError(f"{file} was cut or changed: {first_line(error)}. {fix}") from error
    true, predicted = (column.to_numpy().astype(np.int64) for column in codes)
    return StoredPredictions(found[0], table[found[0]].combine_chunks(), true, predicted, tuple(classes), **chances)
