"""Whether all ranks of a run, and a resumed run, have the same images."""

from collections.abc import Callable
from typing import TypeVar, get_args

from torch import Tensor

from imgrec.config.schema import Split
from imgrec.data.image_data import ImageData
from imgrec.data.readable import check_readable
from imgrec.data.split_record import DataRecord, find_changes, other_classes
from imgrec.distributed.process_group import all_gather, on_first_rank
from imgrec.errors import DataError
from imgrec.inference.checkpoint import read_record
from imgrec.inference.rank_data import compare_ranks
from imgrec.training.checkpoint import ResumePoint

Data = TypeVar("Data", bound=ImageData)


def checked_data(data: Data, resume: ResumePoint | None, say: Callable[[str], None], *, rank: int) -> tuple[Data, Tensor | None]:
    """The data of a run, and on rank 0, which writes the checkpoints, its packed record. A collective.

    With data.changed=accept what is left of each split of a resumed run stays in it.

    DataError where ranks have other images than rank 0, where a resumed run has other classes, or with data.changed=refuse
    other images than it was saved with, and for what `check_readable` refuses.
    """
    content = get_args(Split) if rank == 0 else ()
    record = data.record(content=content)
    compare_ranks(record, all_gather)
    if resume is not None and (then := on_first_rank(lambda: _changed_record(data, record, resume, say))) is not None:
        data = data.following(then)
        record = data.record(content=content)
    check_readable(data)
    return data, record.pack() if rank == 0 else None


def _changed_record(data: ImageData, now: DataRecord, resume: ResumePoint, say: Callable[[str], None]) -> DataRecord | None:
    """What the run was saved with, where that is not what the data is now."""
    assert resume.checkpoint is not None
    then = read_record(resume.checkpoint["imgrec"], resume.file)
    if then is None:
        return None
    if other := other_classes(then.classes, data.classes):
        raise DataError(f"the data has {other}. Restore the folders to resume the run, or set resume=false to start a new one.")
    changes = find_changes(then, now)
    if not changes.counts:
        return None
    if data.changed == "refuse":
        raise DataError(
            f"the images have changed since the run was saved: {changes}. "
            "Set data.changed=accept to resume with those of now, or resume=false to start a new run."
        )
    say(f"the images have changed since the run was saved: {changes}")
    return then
