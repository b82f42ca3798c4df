"""Whether a run holds back images that the network which it learns from, or begins with, was trained on."""

from collections.abc import Callable

from imgrec.config.schema import Split
from imgrec.data.split_record import DataRecord, trained_on
from imgrec.errors import plural

_MEASURED: tuple[Split, ...] = ("val", "test")


def seen_sentence(source: str, read: Callable[[], DataRecord | None], now: DataRecord | None) -> str:
    """A sentence about those of `now` that are in train in what `read` gives; nothing where there are none, or where that is not recorded.

    source: whose training that was. Files are compared by name and size; sets in memory have no names.
    """
    if now is None or (then := read()) is None:
        return ""
    counts = {split: len(trained_on(then, now, split)) for split in _MEASURED}
    parts = [
        f"{count:,} of the {plural(len(now.splits[split].labels), f'{split} image')}" for split, count in counts.items() if count
    ]
    if not parts:
        return ""
    return (
        f"{source} was trained on {' and '.join(parts)}, so what is measured there is too good. "
        "Give both runs the same splits: data.split_seed, data.val_share and data.test_share"
    )
