"""A run whose memory ends within a step starts again from its last save, with half of the images at once."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imgrec.config.schema import RunConfig
from imgrec.data.allocator import give_back_freed_memory
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, OutOfMemory, plural
from imgrec.training.batch_choice import BatchChoice

if TYPE_CHECKING:
    from imgrec.data.sampler import BatchPlan
    from imgrec.training.device_batches import DeviceBatches

_T = TypeVar("_T")


@contextmanager
def halved_where_memory_ends(run: RunConfig, plan: "BatchPlan", file: Path, *, began: Callable[[], bool]) -> Iterator[None]:
    """OutOfMemory where the memory does not hold a batch that is trained on in the block: the next start has half of it at once.

    file: where that is stored. began: whether the first step was reached; what does not fit before it needs as much with fewer images.
    """
    from imgrec.inference.device import is_out_of_memory
    from imgrec.training.device_batches import DeviceBatches

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not began() or not is_out_of_memory(error):
            raise
        before, sizes = plan.per_device, DeviceBatches(run, samples=plan.samples, devices=plan.devices)
        if (smaller := sizes.below(before)) is None:
            raise ConfigError(_no_smaller(run, before, sizes)) from error
        reason = f"{plural(before, 'image')} at once did not fit in the memory"
        BatchChoice(run.global_batch, smaller, f"max_device_batch={smaller}, as {reason}").store(file)
        raise OutOfMemory(
            f"{reason}. {_again(file.parent.name)}The run resumes with max_device_batch={smaller}, "
            f"in the same global batch of {plan.global_size}."
        ) from error


def _no_smaller(run: RunConfig, size: int, sizes: "DeviceBatches") -> str:
    """What is said of a device without memory for `size` images, where the run cannot be computed with fewer."""
    what, why, fix = "a single image", "", ""
    if size > 1:
        what = f"{size} images"
        why = f", and {'augment.mixup and augment.cutmix' if sizes.mixes else 'the batch norm of this network'} cannot do with fewer at once"
        fix = ", augment.mixup=0 augment.cutmix=0" * sizes.mixes
    precision = ", trainer.precision=bf16-mixed" * (run.trainer.precision == "32")
    return (
        f"max_device_batch={size}: the memory of a device does not hold {what} of {run.data.image_size} pixels{why}. "
        f"Set data.image_size={max(1, run.data.image_size // 2)}{precision}{fix} or a smaller model."
    )


def _again(id: str) -> str:
    """What the user does that the run is started again; nothing where that is done by itself, see `within_memory`."""
    world = read_world()
    if world.size == 1 or world.started_by == "imgrec":
        return ""
    # Without an id the directory of a SLURM job has its number, and the next job has another.
    return f"Submit the same with id={id}: " if world.started_by == "slurm" else "Start the same command again: "


@contextmanager
def refused_where_memory_ends(run: RunConfig, plan: "BatchPlan") -> Iterator[None]:
    """OutOfMemory, with what to type, where the memory does not hold a batch of the block."""
    from imgrec.inference.device import is_out_of_memory
    from imgrec.training.device_batches import DeviceBatches

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size, sizes = plan.per_device, DeviceBatches(run, samples=plan.samples, devices=plan.devices)
        if (smaller := sizes.below(size)) is None:
            raise OutOfMemory(_no_smaller(run, size, sizes)) from error
        raise OutOfMemory(
            f"max_device_batch={size}: so many images do not fit in the memory. Set max_device_batch={smaller}, or auto."
        ) from error


def within_memory(work: Callable[[], _T], say: Callable[[str], None], line: str | None = None) -> _T:
    """The result of `work`, a start of a run; after OutOfMemory it is called again, and resumes with fewer images at once.

    line: of the OutOfMemory of a start before, to be said first.
    """
    while True:
        if line is not None:
            gc.collect()  # the trainer and its network refer to one another
            give_back_freed_memory()
            say(line)
        try:
            return work()
        except OutOfMemory as error:
            line = str(error)


def free_tensors(error: BaseException) -> None:
    """Free what the functions that raised `error` hold: the tensors of the step that did not fit."""
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__context__
    give_back_freed_memory()
