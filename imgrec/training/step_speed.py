"""How fast training steps are, with the optimizer and the average of the weights, on the first device."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import repeat

from imgrec.config.schema import RunConfig
from imgrec.data.augment import Augment
from imgrec.data.datamodule import DataModule
from imgrec.data.image_data import ImageData
from imgrec.distributed.process_group import connected_world
from imgrec.models.summary import measure_size
from imgrec.training.callbacks.stopwatch import UNTIMED, Stopwatch
from imgrec.training.distill import read_teacher
from imgrec.training.module import Classifier
from imgrec.training.out_of_memory import refused_where_memory_ends
from imgrec.training.threads import chosen_threads
from imgrec.training.trainer import build_trainer, configured_callbacks
from imgrec.training.transfer import initial_network


def train_speed(
    run: RunConfig, data: ImageData, augment: Augment, seconds: float, *, same: bool, untimed: int = UNTIMED
) -> float:
    """Images per second of training steps, with the batches of the loader or again and again with the first one.

    untimed: steps before the seconds begin, see Stopwatch. OutOfMemory where the memory does not hold a step.
    """
    loaders = DataModule(run if not same else replace(run, num_workers=0), data, augment, devices=1)
    net, _ = initial_network(run, data.classes)
    size = measure_size(net, channels=run.data.channels, image_size=run.data.image_size, num_classes=len(data.classes))
    stopwatch, world = Stopwatch(seconds, untimed=untimed), connected_world(run.trainer)
    trainer = build_trainer(
        run.trainer,
        loaders.plan,
        world,
        callbacks=[*configured_callbacks({"ema": run.callbacks.get("ema")}, {}), stopwatch],
        logger=False,
        max_steps=-1,
        max_epochs=-1,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    teacher = read_teacher(run, data.classes)
    classifier = Classifier(run, net, data, augment, loaders.plan, teacher=teacher, with_schedule=False)
    operations = size.training_operations(loaders.plan.per_device * loaders.plan.accumulate)
    threads = chosen_threads(run.trainer, world, step_operations=operations)
    with closing(loaders), threads, refused_where_memory_ends(run, loaders.plan):
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
