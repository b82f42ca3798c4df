"""How fast the parts of a training are here, and with which settings it is faster: python -m imgrec.benchmark FOLDER

Measures the loader alone with several numbers of workers, the step alone (on one batch, again and again) with another
precision and a larger batch, and both together; where the loader is the limit, also with images that are in memory
(data.cache=ram), if there is room for them. Prints the training with what was fastest. On one device; it writes nothing.
"""

import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from imgrec.config.load import compose_run
from imgrec.config.schema import DataConfig, Precision, RunConfig, run_config
from imgrec.config.start_checks import check_start
from imgrec.distributed.command import run_command
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, DataError, OutOfMemory, plural
from imgrec.terminal import Terminal
from imgrec.training.batch_choice import with_chosen_batch
from imgrec.training.batch_finder import GAIN as BATCH_GAIN
from imgrec.training.precision import chosen_precision

if TYPE_CHECKING:
    from rich.table import Table

    from imgrec.data.augment import Augment
    from imgrec.data.folder import ImageFiles
    from imgrec.data.image_data import ImageData

ENOUGH = 1.1  # times the images of the step that a loader has to give
# Least gain for which another precision, a larger batch, and images in memory are recommended.
PRECISION_GAIN = 1.05
CACHE_GAIN = 1.1
IN_MEMORY = 500  # images that stand for all: of photographs 280 MB, more than the caches of a processor hold
SET_HERE = ("num_workers", "batch_size", "trainer.precision", "seconds", "data.cache")


class Step(NamedTuple):
    """What the speed of a step depends on, beside the network."""

    batch: int
    precision: Precision


class Speeds(NamedTuple):
    """Images per second: of the loader and of both by the number of workers, of the step alone."""

    loader: dict[int, float]
    step: dict[Step, float]
    both: dict[int, float]


class Memory(NamedTuple):
    """What data.cache=ram needs and may have, in bytes; images/s with it from the second epoch on, None where they do not fit."""

    needed: int
    usable: int
    workers: int = 0
    loader: float | None = None
    both: float | None = None


def fewest_workers(loader: Mapping[int, float], step: float) -> int:
    """The fewest workers that give the step ENOUGH images, else those that give most."""
    enough = [workers for workers in sorted(loader) if loader[workers] >= ENOUGH * step]
    return enough[0] if enough else max(loader, key=lambda workers: loader[workers])


def best_step(step: Mapping[Step, float], given: Step) -> Step:
    """The fastest precision, and then the fastest batch, of those that are enough faster than the given ones."""
    precision = max((one for one in step if one.batch == given.batch), key=lambda one: step[one])
    chosen = precision if step[precision] >= PRECISION_GAIN * step[given] else given
    batch = max((one for one in step if one.precision == given.precision), key=lambda one: step[one])
    return chosen._replace(batch=batch.batch) if step[batch] >= BATCH_GAIN * step[given] else chosen


def loader_limits(speeds: Speeds, given: Step) -> bool:
    return max(speeds.loader.values()) < ENOUGH * speeds.step[given]


def cache_pays(speeds: Speeds, memory: Memory | None) -> bool:
    """Whether the training is enough faster with data.cache=ram."""
    return memory is not None and memory.both is not None and memory.both >= CACHE_GAIN * max(speeds.both.values())


def measure(
    configured: RunConfig, seconds: float, advance: Callable[[str, int, int], None], terminal: Terminal
) -> tuple[Speeds, Step, Memory | None]:
    """The speeds and the given step; the memory where the loader is the limit of several epochs that are read from files.

    `advance(what, done, of)` is called before each measurement, `terminal` gets lines. A larger batch is left out where it
    does not fit, and beside batch_size=auto, which has looked for one.
    """
    check_start(configured)
    import numpy as np

    from imgrec.data.datamodule import DataModule, build_data
    from imgrec.data.decoded import usable_memory
    from imgrec.data.folder import FileData, ImageFiles
    from imgrec.training.step_speed import train_speed
    from imgrec.training.torch_compat import compiling
    from imgrec.training.trainer import prepare_process

    prepare_process(configured)
    data, augment = build_data(configured)
    if isinstance(data, FileData):
        data.cache = "none"  # its first epoch would be measured, and that is read from files anyway
    run = replace(chosen_precision(configured.with_classes(len(data.classes))), trainer=configured.trainer.on_one_device())
    run, _ = with_chosen_batch(run, None, data, terminal)
    usual = DataModule(run, data, augment, devices=1)
    precision, workers = run.trainer.precision, usual.workers
    assert precision != "auto", "chosen_precision has replaced it"
    given = Step(usual.plan.global_size, precision)
    counts = sorted({workers, 1, usual.cores, *([0] if data.in_memory else [])})
    steps = [given, given._replace(precision="bf16-mixed" if given.precision == "32" else "32")]
    if 2 * given.batch <= len(data.splits.train) and configured.batch_size != "auto":
        steps.append(given._replace(batch=2 * given.batch))
    files = train if isinstance(train := data.splits.train, ImageFiles) and (run.epochs != 1 or run.time is not None) else None
    parts = len(counts) + len(steps) + (2 if files is None else 4)
    speeds, done = Speeds({}, {}, {}), 0
    for count in counts:
        advance(f"loader with {plural(count, 'worker')}", done, parts)
        speeds.loader[count] = loader_speed(replace(run, num_workers=count), data, augment, seconds / parts)
        done += 1
    with compiling():
        for step in steps:
            advance(f"step of {step.batch} images, {step.precision}", done, parts)
            with suppress(OutOfMemory) if step != given else nullcontext():
                speeds.step[step] = train_speed(_with_step(run, step), data, augment, seconds / parts, same=True)
            done += 1
        for count in dict.fromkeys((workers, fewest_workers(speeds.loader, speeds.step[given]))):
            advance(f"both with {plural(count, 'worker')}", done, parts)
            speeds.both[count] = train_speed(replace(run, num_workers=count), data, augment, seconds / parts, same=False)
            done += 1
        if files is None or not loader_limits(speeds, given):
            return speeds, given, None
        rows = np.linspace(0, len(files) - 1, min(IN_MEMORY, len(files))).astype(np.int64)
        images = len(files) + (0 if data.splits.val is None else len(data.splits.val))
        memory = Memory(needed_memory(few := files.take(rows), images), usable_memory())
        if memory.needed > memory.usable:
            return speeds, given, memory
        data = copy(data)
        data.splits = data.splits._replace(train=standing_for(files, few))
        count = max(speeds.loader, key=lambda workers: speeds.loader[workers])
        run = replace(run, num_workers=count)
        advance("loader with images in memory", done, parts)
        alone = loader_speed(run, data, augment, seconds / parts)
        advance("both with images in memory", done + 1, parts)
        both = train_speed(run, data, augment, seconds / parts, same=False)
        return speeds, given, memory._replace(workers=count, loader=alone, both=both)


def needed_memory(few: "ImageFiles", images: int) -> int:
    """Bytes of the pixels of so many images, by the size of a few."""
    from imgrec.data.decoded import image_sizes

    return int(image_sizes(few.open, len(few)).mean() * few.preprocessing["channels"] * images)


def standing_for(files: "ImageFiles", few: "ImageFiles") -> "ImageFiles":
    """The files, with each image one of a few that are decoded already."""
    from imgrec.data.decoded import StandIns

    few = few.decoded_once()
    assert few.decoded is not None
    for row in range(len(few)):
        with suppress(DataError):  # where it is read, it is refused or left out
            few.decoded.put(row, few.decode(row))
    standing = copy(files)
    standing.decoded = StandIns(few.decoded.file, len(few), few.preprocessing["channels"])
    return standing


def _with_step(run: RunConfig, step: Step) -> RunConfig:
    return replace(run, batch_size=step.batch).with_precision(step.precision)


def loader_speed(run: RunConfig, data: "ImageData", augment: "Augment", seconds: float) -> float:
    """Images per second of the loader of train alone, without the first batches, which come while its workers start."""
    from imgrec.data.datamodule import DataModule

    with closing(DataModule(run, data, augment, devices=1)) as loaders:
        loader = loaders.train_dataloader()
        batches = 0
        began = now = time.perf_counter()
        images = 0
        while now - began < seconds or not images:
            for batch in loader:
                batches += 1
                now = time.perf_counter()
                if batches <= 2 * loaders.workers + 1:
                    began = now
                    continue
                images += len(batch.labels)
                if now - began >= seconds:
                    break
        return images / (now - began)


def speed_table(speeds: Speeds, memory: Memory | None = None) -> "Table":
    """A row for each measurement."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("part", "setting", "images/s")
    for workers, speed in sorted(speeds.loader.items()):
        table.add_row("loader", f"num_workers={workers}", f"{speed:,.0f}")
    for step, speed in speeds.step.items():
        table.add_row("step", f"batch_size={step.batch} trainer.precision={step.precision}", f"{speed:,.0f}")
    for workers, speed in speeds.both.items():
        table.add_row("both", f"num_workers={workers}", f"{speed:,.0f}")
    if memory is not None:
        for part, found in (("loader", memory.loader), ("both", memory.both)):
            if found is not None:
                table.add_row(part, f"num_workers={memory.workers} data.cache=ram", f"{found:,.0f}")
    return table


def limit_sentence(speeds: Speeds, given: Step) -> str:
    """What limits the training: the loader or the step."""
    loader, step = max(speeds.loader.values()), speeds.step[given]
    if not loader_limits(speeds, given):
        return f"The step is the limit: the loader gives up to {loader / step:.1f} times its images."
    return f"The loader is the limit: it gives up to {loader / step:.1f} times the images of the step."


def memory_sentence(speeds: Speeds, memory: Memory) -> str:
    """Whether data.cache=ram fits, and whether it pays."""
    sizes = f"the decoded images need {memory.needed / 1e9:,.1f} GB, and {memory.usable / 1e9:,.1f} GB of memory are available"
    if memory.both is None:
        return f"data.cache=ram does not fit: {sizes}. Pack them smaller, and train with data=shards:"
    gain = f"{memory.both / max(speeds.both.values()):.1f} times the images/s"
    if cache_pays(speeds, memory):
        return f"data.cache=ram pays from the second epoch on, with {gain}: {sizes}."
    return f"data.cache=ram does not pay, with {gain}: {sizes}."


def pack_command(data: DataConfig, words: Sequence[str]) -> list[str]:
    """The command that packs the images of a training as small as it needs them; words: its own."""
    scale = data.crop_share if data.resize == "crop" else 1.0
    named = [word for word in words if "=" not in word or word.startswith(("data=", "data."))]
    return ["imgrec", "pack", *(named or ["FOLDER"]), "out=DIR", f"size={math.ceil(data.image_size / scale)}"]


def next_settings(speeds: Speeds, given: Step, memory: Memory | None = None) -> list[str]:
    """The settings that were fastest, as words of a command line."""
    workers = max(speeds.both, key=lambda count: speeds.both[count])
    cached = memory is not None and cache_pays(speeds, memory)
    step = best_step(speeds.step, given)
    settings = [f"num_workers={memory.workers if memory is not None and cached else workers}", f"batch_size={step.batch}"]
    return [*settings, f"trainer.precision={step.precision}", *(["data.cache=ram"] if cached else [])]


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Print what was measured, what limits the training, and the training with the fastest settings."""
    tree: dict[str, Any] = compose_run("benchmark", argv, config_dir)
    if (size := read_world().size) > 1:
        raise ConfigError(f"benchmark: expected one process, but {size} were started. Type imgrec benchmark without torchrun.")
    terminal, run = Terminal(), run_config(tree)
    with terminal.bar() as bar:
        task = bar.add_task("benchmark", total=None, note="")
        speeds, given, memory = measure(
            run,
            tree["seconds"],
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
            terminal,
        )
    terminal.say(speed_table(speeds, memory))
    terminal.say(limit_sentence(speeds, given), style="bold green")
    kept = [word for word in argv if word.partition("=")[0].lstrip("+") not in SET_HERE]
    if memory is not None:
        terminal.say(memory_sentence(speeds, memory))
        if memory.both is None:
            terminal.say(f"  {shlex.join(pack_command(run.data, kept))}")
    settings = next_settings(speeds, given, memory)
    if settings[1] != f"batch_size={given.batch}":
        terminal.say("Another batch_size changes what is learned: set optim.lr anew, or optim.base_batch.")
    folder = ["--config-dir", config_dir] if config_dir else []
    terminal.say("next:")
    terminal.say(f"  {shlex.join(['imgrec', 'train', *folder, *kept, *settings])}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmark", main, sys.argv[1:]))
