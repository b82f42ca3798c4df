"""The data of a run: whether all its ranks, and a resumed run, have the same images, and whether these can be read."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, get_args

from imgrec.config.schema import RunConfig, Split
from imgrec.data.augment import Augment
from imgrec.data.datamodule import build_data
from imgrec.data.image_data import ImageData
from imgrec.data.readable import Unreadable, are_known_readable, check_readable, find_unreadable, remember_readable
from imgrec.data.split_record import SHOWN, DataRecord, find_changes, other_classes, show_name, trained_on
from imgrec.distributed import signals
from imgrec.distributed.process_group import all_gather, on_first_rank
from imgrec.distributed.world import World
from imgrec.errors import DataError, Stopped, first_names, plural
from imgrec.inference.checkpoint import read_record
from imgrec.inference.rank_data import compare_ranks
from imgrec.scan.known_faults import KnownFaults, known_faults
from imgrec.terminal import Terminal
from imgrec.training.resume_point import ResumePoint

Data = TypeVar("Data", bound=ImageData)


def read_data(
    run: RunConfig, resume: ResumePoint | None, terminal: Terminal, world: World
) -> tuple[ImageData, Augment, DataRecord | None, KnownFaults]:
    """The data of a run and its augmentation, on rank 0 the record of its images, and their known faults. A collective."""
    data, augment = build_data(run)
    with terminal.progress_shown():
        data, record = checked_data(data, resume, terminal.say, world)
    return data, augment, record, known_faults(data, record, run)


def checked_data(
    data: Data, resume: ResumePoint | None, say: Callable[[str], None], world: World
) -> tuple[Data, DataRecord | None]:
    """The data of a run, and on rank 0, which writes the checkpoints, its record. A collective.

    With data.changed=accept what is left of each split of a resumed run stays in it.

    DataError where ranks have other images than rank 0, where a resumed run has other classes, or with data.changed=refuse
    other images than it was saved with, where val or test have images that it was trained on, for images that cannot be
    read, and for what `check_readable` refuses.
    """
    content = get_args(Split) if world.rank == 0 else ()
    record = data.record(content=content)
    if world.size > 1:
        compare_ranks(record, all_gather)
    then = None
    if resume is not None and (then := on_first_rank(lambda: _changed_record(data, record, resume, say))) is not None:
        data = data.following(then)
        record = data.record(content=content)
        on_first_rank(partial(_refuse_trained_on, then, record))
    if resume is None or then is not None:
        _refuse_unreadable(data, record, say, world)
    check_readable(data)
    return data, record if world.rank == 0 else None


def _refuse_unreadable(data: ImageData, record: DataRecord, say: Callable[[str], None], world: World) -> None:
    """DataError with the first of the images that cannot be read, after a line for each; all ranks share the work.

    record: with the content of all splits on rank 0. Images that were readable once are not looked at again.
    """
    if on_first_rank(lambda: are_known_readable(data, record)):
        return
    found: list[Unreadable] = []
    for part in find_unreadable(data, rank=world.rank, size=world.size):
        found += part
        if world.size == 1 and (reason := signals.stop_reason()) is not None:
            raise Stopped(f"stopped by {reason} while the images were looked at. Start the same command again.")
    found = sorted(one for rank in all_gather(found) for one in rank)
    if not found:
        if world.rank == 0:
            remember_readable(data, record)
        return
    for one in found[1:]:
        say(one.reason)
    others = f" {plural(len(found) - 1, 'other')} cannot either, see above." if found[1:] else ""
    key = "on_bad_image" if any(one.split == "train" for one in found) else "on_bad_image_eval"
    raise DataError(
        f"{found[0].reason}{others} Remove or replace {'them' if others else 'it'}, "
        f"or leave unreadable images out with data.{key}=skip. imgrec check looks at every image."
    )


def _refuse_trained_on(then: DataRecord, now: DataRecord) -> None:
    """DataError where images that the run was trained on are now in a split that measures it."""
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        if moved := [show_name(name) for name in trained_on(then, now, split)]:
            raise DataError(
                f"{plural(len(moved), 'image')} of {split} were in train when the run was saved "
                f"({first_names(moved, SHOWN)}), so its figures would be too good. "
                "Move them back to resume the run, or set resume=false to start a new one."
            )


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
