"""Whether all ranks of a run, and a resumed run, have the same images."""

from collections.abc import Callable
from typing import TypeVar

from imgrec.data.image_data import ImageData
from imgrec.data.readable import check_readable
from imgrec.data.split_record import DataRecord, find_changes, other_classes
from imgrec.distributed.process_group import all_gather, on_first_rank
from imgrec.errors import DataError
from imgrec.inference.checkpoint import read_record
from imgrec.inference.rank_data import compare_ranks
from imgrec.training.checkpoint import ResumePoint

Data = TypeVar("Data", bound=ImageData)


def checked_data(data: Data, resume: ResumePoint | None, say: Callable[[str], None]) -> Data:
    """The data of a run; with data.changed=accept what is left of each split of a resumed run stays in it. A collective.

    DataError where ranks have other images than rank 0, where a resumed run has other classes, or with data.changed=refuse
    other images than it was saved with, and for what `check_readable` refuses.
    """
    compare_ranks(data.record(content=()), all_gather)
    if resume is not None and (then := on_first_rank(lambda: _changed_record(data, resume, say))) is not None:
        data = data.following(then)
    check_readable(data)
    return data


def _changed_record(data: ImageData, resume: ResumePoint, say: Callable[[str], None]) -> DataRecord | None:
    """What the run was saved with, where that is not what the data is now."""
    assert resume.checkpoint is not None
    then = read_record(resume.checkpoint["imgrec"], resume.file)
    if then is None:
        return None
    if other := other_classes(then.classes, data.classes):
        raise DataError(f"the data has {other}. Restore the folders to resume the run, or set resume=false to start a new one.")
    changes = find_changes(then, data.record())
    if not changes.counts:
        return None
    if data.changed == "refuse":
        raise DataError(
            f"the images have changed since the run was saved: {changes}. "
            "Set data.changed=accept to resume with those of now, or resume=false to start a new run."
        )
    say(f"the images have changed since the run was saved: {changes}")
    return then
