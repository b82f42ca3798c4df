"""How many images a run computes at once, where its config leaves that open or the memory did not hold them: batch.json.

The file is in the run directory, so that each start computes the same: the bits of a step depend on its parts.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.batch_checks import check_batch_divides
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import RunConfig
from imgrec.distributed.process_group import all_gather, on_first_rank
from imgrec.distributed.world import World, read_world
from imgrec.errors import ConfigError, plural
from imgrec.files import atomic_write, on_progress
from imgrec.terminal import Terminal
from imgrec.training.batch_finder import (
    BUDGET_S,
    GAIN,
    HEADROOM,
    LEAST_STEPS,
    SizeSearch,
    doubled_sizes,
    halved_sizes,
    make_probe,
    search_sizes,
)

if TYPE_CHECKING:
    from imgrec.data.image_data import ImageData

LEAST_BATCH = 2  # that batch_size=auto chooses on a device: batch norm and mixup need another image


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


def stored_choice(file: Path) -> BatchChoice | None:
    """What was chosen for a run before; DataError where the file was cut or changed."""
    if not file.exists():
        return None
    types = {"batch_size": int | Literal["full"], "max_device_batch": int, "reason": str}
    return BatchChoice(**read_mapping(file, types, fix="Set resume=false to start a new run."))


def with_chosen_batch(
    run: RunConfig,
    file: Path | None,
    data: "ImageData",
    terminal: Terminal,
    doing: Callable[[str], None] = lambda what: None,
) -> tuple[RunConfig, BatchChoice | None]:
    """The run with what "auto" stands for, and that choice; None where there was nothing to choose. The same on all ranks.

    file: of an earlier choice, which counts, and for a new one; None: of no run. The classes
    and the precision of the run are known. `doing` is called with what this rank does. ConfigError where
    no step can be measured.
    """
    choice = None if file is None else on_first_rank(lambda: stored_choice(file))
    if choice is None and "auto" in (run.batch_size, run.max_device_batch):
        world = read_world()
        own = _measure(run, data, world, terminal, doing)
        choice = min(all_gather(own), key=lambda of_rank: (of_rank.batch_size, of_rank.max_device_batch))
        if file is None:
            terminal.say(choice.reason)  # a run has it on its start screen
        elif world.rank == 0:
            choice.store(file)
    return (run if choice is None else choice.applied_to(run)), choice


def _measure(run: RunConfig, data: "ImageData", world: World, terminal: Terminal, doing: Callable[[str], None]) -> BatchChoice:
    """What this rank can compute."""
    from imgrec.training.device_batches import DeviceBatches

    samples = len(data.splits.train)
    if run.batch_size == "auto":
        key, most = "batch_size", max(LEAST_BATCH, samples // (LEAST_STEPS * world.size))
        sizes = doubled_sizes(most if run.max_device_batch == "auto" else min(most, run.max_device_batch))
    else:
        check_batch_divides(run.batch_size, world.size)
        key, whole = "max_device_batch", samples if run.batch_size == "full" else run.batch_size
        sizes = halved_sizes(-(-whole // world.size))
    device_batches = DeviceBatches(run, samples=samples, devices=world.size)

    def allows(size: int) -> bool:
        return size >= LEAST_BATCH if run.batch_size == "auto" else size > 0 and device_batches.allows(size)

    terminal.say(f"{key}=auto: training steps are measured in a process of their own, for {BUDGET_S:.0f} s at most")

    def watch(images: int) -> None:
        on_progress.get()("measuring training steps", 1, len(sizes))
        doing(f"measuring training steps of {images} images")

    with terminal.progress_shown(), closing(make_probe(run, key, data.classes, world, watch)) as probe:
        search = search_sizes(probe.ask, sizes, for_speed=key == "batch_size", allows=allows)
    if not search.found:
        step = f"{key}=auto: a training step of {plural(search.last, 'image')}"
        precision = ", trainer.precision=bf16-mixed" * (run.trainer.precision == "32")
        if search.end == "time":
            raise ConfigError(
                f"{step} takes more than {BUDGET_S:.0f} s. Set {key}={search.last}, a smaller data.image_size{precision} or a smaller model."
            )
        raise ConfigError(
            f"{step}, the fewest that are possible, does not fit in the memory. "
            f"Set a smaller data.image_size{precision} or a smaller model."
        )
    return _fastest(run, search, world.size) if run.batch_size == "auto" else _largest(run, search, run.batch_size)


def _fastest(run: RunConfig, search: SizeSearch, devices: int) -> BatchChoice:
    chosen = search.fastest
    speeds = ", ".join(f"{size}: {measured.speed:,.0f}" for size, measured in sorted(search.found.items()))
    limit = f"with more an epoch has fewer than {LEAST_STEPS} steps"
    if run.max_device_batch != "auto" and 2 * search.last > run.max_device_batch:
        limit = f"max_device_batch={run.max_device_batch}"
    rate = "" if run.optim.get("base_batch") is not None else "; optim.lr is not scaled to it without optim.base_batch"
    return BatchChoice(
        chosen * devices,
        chosen if run.max_device_batch == "auto" else run.max_device_batch,
        f"batch_size=auto: {chosen}, the smallest within {GAIN - 1:.0%} of the fastest on a device ({speeds} images/s); "
        f"{_end(search, limit)}{rate}",
    )


def _largest(run: RunConfig, search: SizeSearch, batch_size: int | Literal["full"]) -> BatchChoice:
    chosen = max(search.found)
    memory = search.found[chosen].memory
    return BatchChoice(
        batch_size,
        chosen,
        f"max_device_batch=auto: {chosen} images took {memory / 1e9:.1f} GB; {_end(search, 'a device has no more of the batch')}",
    )


def _end(search: SizeSearch, limit: str) -> str:
    """Why nothing larger was measured."""
    if search.end == "all":
        return limit
    if search.end == "memory":
        return f"{search.last} images do not fit in {1 - HEADROOM:.0%} of the free memory"
    return f"{search.last} images were not measured within {BUDGET_S:.0f} s" if search.end == "time" else "more are hardly faster"
