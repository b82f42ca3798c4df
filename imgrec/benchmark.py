"""How fast the parts of a training are here, and with which settings it is faster: python -m imgrec.benchmark FOLDER

Measures the loader alone with several numbers of workers, the step alone (on one batch, again and again) with another
precision and a larger batch, and both together, and prints the training with what was fastest. On one device; it writes
nothing.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from imgrec.config.load import compose_run
from imgrec.config.schema import Precision, RunConfig, run_config
from imgrec.config.start_checks import check_start
from imgrec.distributed.command import run_command
from imgrec.distributed.process_group import connected_world
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError
from imgrec.terminal import Terminal
from imgrec.training.precision import chosen_precision

if TYPE_CHECKING:
    from rich.table import Table

    from imgrec.data.augment import Augment
    from imgrec.data.image_data import ImageData

ENOUGH = 1.1  # times the images of the step that a loader has to give
PRECISION_GAIN, BATCH_GAIN = 1.05, 1.1  # least gain for which another precision, and a larger batch, are recommended
SET_HERE = ("num_workers", "batch_size", "trainer.precision", "seconds")


class Step(NamedTuple):
    """What the speed of a step depends on, beside the network."""

    batch: int
    precision: Precision


class Speeds(NamedTuple):
    """Images per second: of the loader and of both by the number of workers, of the step alone."""

    loader: dict[int, float]
    step: dict[Step, float]
    both: dict[int, float]


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


def measure(run: RunConfig, seconds: float, advance: Callable[[str, int, int], None]) -> tuple[Speeds, Step, int]:
    """The speeds, the given step and the given workers; `advance(what, done, of)` is called before each measurement."""
    check_start(run)
    from imgrec.data.datamodule import DataModule, build_data
    from imgrec.training.lightning_compat import compiling
    from imgrec.training.trainer import prepare_process

    prepare_process(run)
    data, augment = build_data(run)
    run = chosen_precision(run.with_classes(len(data.classes)))
    run = replace(run, trainer=run.trainer.on_one_device())
    usual = DataModule(run, data, augment, devices=1)
    precision, workers = run.trainer.precision, usual.workers
    assert precision != "auto", "chosen_precision has replaced it"
    given = Step(usual.plan.global_size, precision)
    counts = sorted({workers, 1, usual.cores, *([0] if data.in_memory else [])})
    other: Precision = "bf16-mixed" if given.precision == "32" else "32"
    steps = [given, given._replace(precision=other)]
    if 2 * given.batch <= len(data.splits.train):
        steps.append(given._replace(batch=2 * given.batch))
    parts = len(counts) + len(steps) + 2
    speeds, done = Speeds({}, {}, {}), 0
    for count in counts:
        advance(f"loader with {count} workers", done, parts)
        speeds.loader[count] = loader_speed(replace(run, num_workers=count), data, augment, seconds / parts)
        done += 1
    with compiling():
        for step in steps:
            advance(f"step of {step.batch} images, {step.precision}", done, parts)
            speeds.step[step] = train_speed(_with_step(run, step), data, augment, seconds / parts, same=True)
            done += 1
        for count in dict.fromkeys((workers, fewest_workers(speeds.loader, speeds.step[given]))):
            advance(f"both with {count} workers", done, parts)
            speeds.both[count] = train_speed(replace(run, num_workers=count), data, augment, seconds / parts, same=False)
            done += 1
    return speeds, given, workers


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


def train_speed(run: RunConfig, data: "ImageData", augment: "Augment", seconds: float, *, same: bool) -> float:
    """Images per second of training steps, with the batches of the loader or again and again with the first one."""
    from imgrec.data.datamodule import DataModule
    from imgrec.models.summary import measure_size
    from imgrec.training.callbacks.stopwatch import Stopwatch
    from imgrec.training.module import Classifier
    from imgrec.training.threads import chosen_threads
    from imgrec.training.trainer import build_trainer
    from imgrec.training.transfer import initial_network

    loaders = DataModule(run if not same else replace(run, num_workers=0), data, augment, devices=1)
    net, _ = initial_network(run, data.classes)
    size = measure_size(net, channels=run.data.channels, image_size=run.data.image_size, num_classes=len(data.classes))
    stopwatch, world = Stopwatch(seconds), connected_world(run.trainer)
    trainer = build_trainer(
        run.trainer,
        loaders.plan,
        world,
        callbacks=[stopwatch],
        logger=False,
        max_steps=-1,
        max_epochs=-1,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    classifier = Classifier(run, net, data, augment, loaders.plan, with_schedule=False)
    operations = size.training_operations(loaders.plan.per_device * loaders.plan.accumulate)
    with closing(loaders), chosen_threads(run.trainer, world, step_operations=operations):
        if same:
            batches = _Repeated(next(iter(loaders.train_dataloader())))
            trainer.fit(classifier, batches, loaders.val_dataloader())  # the second is not read, but Lightning would warn
        else:
            trainer.fit(classifier, datamodule=loaders)
    return stopwatch.speed


class _Repeated:
    """A loader whose batches are one and the same."""

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1000  # any: it begins again

    def __iter__(self) -> Iterator[object]:
        return repeat(self.batch, len(self))


def speed_table(speeds: Speeds) -> "Table":
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
    return table


def limit_sentence(speeds: Speeds, given: Step) -> str:
    """What limits the training: the loader or the step."""
    loader, step = max(speeds.loader.values()), speeds.step[given]
    if loader >= ENOUGH * step:
        return f"The step is the limit: the loader gives up to {loader / step:.1f} times its images."
    return f"The loader is the limit: it gives up to {loader / step:.1f} times the images of the step. Smaller image files help."


def next_settings(speeds: Speeds, given: Step) -> list[str]:
    """The settings that were fastest, as words of a command line."""
    workers = max(speeds.both, key=lambda count: speeds.both[count])
    step = best_step(speeds.step, given)
    return [f"num_workers={workers}", f"batch_size={step.batch}", f"trainer.precision={step.precision}"]


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Print what was measured, what limits the training, and the training with the fastest settings."""
    tree: dict[str, Any] = compose_run("benchmark", argv, config_dir)
    if (size := read_world().size) > 1:
        raise ConfigError(f"benchmark: expected one process, but {size} were started. Type imgrec benchmark without torchrun.")
    terminal = Terminal()
    with terminal.bar() as bar:
        task = bar.add_task("benchmark", total=None, note="")
        speeds, given, _ = measure(
            run_config(tree),
            tree["seconds"],
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
        )
    terminal.say(speed_table(speeds))
    terminal.say(limit_sentence(speeds, given), style="bold green")
    settings = next_settings(speeds, given)
    if settings[1] != f"batch_size={given.batch}":
        terminal.say("Another batch_size changes what is learned: set optim.lr anew, or optim.base_batch.")
    kept = [word for word in argv if word.partition("=")[0].lstrip("+") not in SET_HERE]
    folder = ["--config-dir", config_dir] if config_dir else []
    terminal.say("next:")
    terminal.say(f"  {shlex.join(['imgrec', 'train', *folder, *kept, *settings])}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmark", main, sys.argv[1:]))
