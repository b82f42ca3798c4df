"""What held a training back, and the setting to change."""

from collections.abc import Mapping

from imgrec.config.schema import RunConfig
from imgrec.data.datamodule import DataModule
from imgrec.data.folder import FileData
from imgrec.training.timeline import PART_NAMES, Part

HELD_BACK = 0.2  # share of a training's time above which the end names what took it
LEAST_S = 5.0  # of that time: for fewer seconds no setting is worth a change

BESIDE_STEPS: tuple[Part, ...] = ("data_wait", "copy", "communication", "validation", "checkpoint")  # no step is computed in them


def held_back(shares: Mapping[Part, float], seconds: float, run: RunConfig, loaders: DataModule) -> str | None:
    """A sentence with the largest part of the time that no training step used, and what to set; None where none is large.

    seconds: of the training, whose `shares` these are.
    """
    part = max(BESIDE_STEPS, key=lambda part: shares.get(part, 0.0))
    if (share := shares.get(part, 0.0)) <= HELD_BACK or share * seconds < LEAST_S:
        return None
    return f"{share:.0%} of the training's time was {PART_NAMES[part]}. {_setting(part, run, loaders)}"


def _setting(part: Part, run: RunConfig, loaders: DataModule) -> str:
    trainer = run.trainer
    if part == "data_wait":
        return data_setting(loaders)
    if part == "copy":
        return f"Set data.image_size={max(1, run.data.image_size // 2)}, or smaller."
    if part == "communication":
        return f"Set batch_size={2 * loaders.plan.global_size}: fewer exchanges for as many images."
    if part == "validation":
        limit, batches = trainer.limit_val_batches, loaders.evaluation_plan("val").steps_per_epoch
        if batches == 1:
            return "It is a single batch: with more training images an epoch its share is smaller."
        if trainer.limit_train_batches != 1.0:
            return f"With whole epochs, without trainer.limit_train_batches={trainer.limit_train_batches}, its share is smaller."
        return f"Set trainer.limit_val_batches={limit / 2 if isinstance(limit, float) else batches // 2}."
    if trainer.save_every_steps is not None:
        return f"Set trainer.save_every_steps={10 * trainer.save_every_steps}."
    return "Set runs_dir=FOLDER on a faster disk."


def data_setting(loaders: DataModule) -> str:
    """What to set where the network waits for images."""
    if loaders.workers < loaders.cores:
        return f"Set num_workers={loaders.cores}."
    data = loaders.data
    if isinstance(data, FileData) and data.reading["decoder"] not in ("auto", "simplejpeg"):
        return "Set data.decoder=auto."
    memory = "set data.cache=ram if imgrec benchmark says that it pays, " * (isinstance(data, FileData) and data.cache == "none")
    return f"{loaders.workers} workers use all cores of this process: {memory}pack the images smaller with imgrec pack, or use more cores."
