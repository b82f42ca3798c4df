"""How many images a run computes at once, where its config leaves that open or the memory did not hold them: batch.json.

The file is in the run directory, so that each start computes the same: the bits of a step depend on its parts.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import RunConfig
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, OutOfMemory, plural
from imgrec.files import atomic_write

if TYPE_CHECKING:
    from imgrec.data.sampler import BatchPlan

_T = TypeVar("_T")


@dataclass(frozen=True)
class BatchChoice:
    """The keys of a run that were chosen, and why: a line for its start screen."""

    batch_size: int | Literal["full"]
    max_device_batch: int
    reason: str

    def applied_to(self, run: RunConfig) -> RunConfig:
        return replace(run, batch_size=self.batch_size, max_device_batch=self.max_device_batch)

    def store(self, file: Path) -> None:
        atomic_write(file, json.dumps(asdict(self), indent=1))


def with_chosen_batch(run: RunConfig, file: Path) -> tuple[RunConfig, BatchChoice | None]:
    """The run as it was chosen in an earlier start, and that choice, on all ranks; DataError where the file was cut or changed."""

    def read() -> BatchChoice | None:
        if not file.exists():
            return None
        types = {"batch_size": int | Literal["full"], "max_device_batch": int, "reason": str}
        return BatchChoice(**read_mapping(file, types, fix="Set resume=false to start a new run."))

    choice = on_first_rank(read)
    return (run if choice is None else choice.applied_to(run)), choice


@contextmanager
def halved_where_memory_ends(run: RunConfig, plan: "BatchPlan", file: Path, *, began: Callable[[], bool]) -> Iterator[None]:
    """OutOfMemory where the memory does not hold a batch that is trained on in the block: the next start has half of it at once.

    began: whether the first step was reached. What does not fit before it needs as much with fewer images.
    """
    from imgrec.inference.device import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not began() or not is_out_of_memory(error):
            raise
        before = plan.per_device
        if before == 1:
            raise ConfigError(
                f"max_device_batch=1: the memory of a device does not hold a single image of {run.data.image_size} pixels. "
                f"Set data.image_size={max(1, run.data.image_size // 2)}, trainer.precision=bf16-mixed or a smaller model."
            ) from error
        reason = f"{plural(before, 'image')} at once did not fit in the memory"
        BatchChoice(run.batch_size, before // 2, f"max_device_batch={before // 2}, as {reason}").store(file)
        again = "" if read_world().started_by in ("alone", "imgrec") else "Start the same command again: "
        raise OutOfMemory(
            f"{reason}. {again}The run resumes with max_device_batch={before // 2}, in the same global batch of {plan.global_size}."
        ) from error


def within_memory(work: Callable[[], _T], say: Callable[[str], None]) -> _T:
    """The result of `work`, a start of a run; after OutOfMemory it is called again, and resumes with fewer images at once."""
    while True:
        try:
            return work()
        except OutOfMemory as error:
            line = str(error)
        say(line)
        gc.collect()  # the trainer and its network refer to one another; torch has their memory for the next ones then
