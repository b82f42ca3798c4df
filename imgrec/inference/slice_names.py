"""What images may be divided by, as `by=` names it; imports no torch, so that another name is refused at once."""

from collections.abc import Sequence

from imgrec.config.options import shipped_targets
from imgrec.config.schema import Node
from imgrec.data.table_file import read_columns
from imgrec.errors import ConfigError, did_you_mean

SIZE, BRIGHTNESS, TYPE = FACTS_OF_IMAGES = ("size", "brightness", "type")
TABLE = "imgrec.data.table.ImageTable"  # the data whose images have columns


def check_slices(by: Sequence[str], data: Node | None) -> None:
    """ConfigError for a name that images of this data cannot be divided by, DataError where its table cannot be read.

    data: the node of the run's data; None where the images come from a folder.
    """
    for name in by:
        if name in FACTS_OF_IMAGES:
            continue
        target = None if data is None else data.get("_target_")
        if data is not None and target == TABLE:
            read_columns(str(data.get("file")), {"by": name}, group="")
        elif data is None or target in shipped_targets("data"):
            raise no_slices(name)


def no_slices(name: str) -> ConfigError:
    """The error for a name of a column where there is no table."""
    return ConfigError(
        f"by={name}: expected {', '.join(FACTS_OF_IMAGES)}, or a column where the images come from a table."
        f"{did_you_mean(name, FACTS_OF_IMAGES)} Set by={BRIGHTNESS}."
    )
