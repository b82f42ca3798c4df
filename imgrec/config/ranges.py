"""The range of every number in conf/, checked before torch is imported. Limits are defined here and nowhere else."""

from math import inf
from typing import Any, NamedTuple

from imgrec.config.annotations import format_value, is_number
from imgrec.errors import ConfigError


class Range(NamedTuple):
    """From `low` to `high`; an open end is not in the range."""

    low: float
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        return (self.low < value or (value == self.low and not self.open_low)) and (
            value < self.high or (value == self.high and not self.open_high and value < inf)
        )

    def __str__(self) -> str:
        above = f"more than {self.low:g}" if self.open_low else f"{self.low:g} or more"
        below = "" if self.high in (inf, 2**63) else f" and {'less than' if self.open_high else 'at most'} {self.high:g}"
        return above + below


COUNT, NOT_NEGATIVE, POSITIVE = Range(1), Range(0), Range(0, open_low=True)
SHARE, BELOW_ONE, INSIDE = Range(0, 1), Range(0, 1, open_high=True), Range(0, 1, open_low=True, open_high=True)
PART = Range(0, 1, open_low=True)

# Numbers that are not listed have to be 0 or more. Each value of a list has to be in the range.
RANGES: dict[str, Range] = {
    # run
    "seed": Range(0, 2**63, open_high=True),
    "epochs": COUNT,
    "batch_size": COUNT,
    "max_device_batch": COUNT,
    "finetune.layer_decay": PART,
    "top_k": COUNT,
    "steps": Range(2),
    "lr_min": POSITIVE,
    "lr_max": POSITIVE,
    "data.split_seed": Range(0, 2**32, open_high=True),
    "data.num_classes": Range(2),
    "data.image_size": COUNT,
    "data.channels": Range(1, 3),
    "data.mean": SHARE,
    "data.std": POSITIVE,
    "data.val_share": INSIDE,
    "data.test_share": INSIDE,
    "data.crop_share": PART,
    "data.train_samples": COUNT,
    "data.test_samples": COUNT,
    "model.depth": COUNT,
    "model.dropout": BELOW_ONE,
    "model.dense_dropout": BELOW_ONE,
    "model.stage_dropout": BELOW_ONE,
    "model.kernel": COUNT,
    "model.widths": COUNT,
    "augment.flip": SHARE,
    "augment.crop_padding": SHARE,
    "augment.crop_scale": PART,
    "augment.crop_ratio": POSITIVE,
    "augment.rotation": Range(0, 180),
    "augment.shift": SHARE,
    "augment.shear": Range(0, 89),
    "augment.zoom": BELOW_ONE,
    "augment.perspective": Range(0, 0.95),  # at 1 two corners may meet, and the image has no inverse
    "augment.randaug_ops": Range(1, 16),
    "augment.randaug_magnitude": Range(0, 30),
    "augment.erase": SHARE,
    "optim.lr": POSITIVE,
    "optim.base_batch": COUNT,
    "optim.momentum": BELOW_ONE,
    "optim.dampening": BELOW_ONE,
    "optim.betas": BELOW_ONE,
    "optim.alpha": BELOW_ONE,
    "optim.eps": POSITIVE,
    "optim.max_grad_norm": POSITIVE,
    "optim.ns_steps": COUNT,
    "scheduler.warmup_share": BELOW_ONE,
    "scheduler.floor": SHARE,
    "scheduler.start": SHARE,
    "scheduler.end": SHARE,
    "scheduler.factor": INSIDE,  # ReduceLROnPlateau refuses 1
    "scheduler.power": POSITIVE,
    "scheduler.shrink": PART,
    "scheduler.gamma_per_epoch": PART,
    "scheduler.every_epochs": COUNT,
    "scheduler.milestones_epochs": COUNT,
    "scheduler.up_epochs": POSITIVE,
    "scheduler.down_epochs": POSITIVE,
    "loss.label_smoothing": BELOW_ONE,
    "callbacks.ema.decay": BELOW_ONE,
    "callbacks.ema.every_steps": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.timeout_s": POSITIVE,
    "trainer.max_minutes": POSITIVE,
    "trainer.save_every_steps": COUNT,
    "trainer.limit_train_batches": POSITIVE,
    "trainer.limit_val_batches": POSITIVE,
    "trainer.limit_test_batches": POSITIVE,
    "trainer.log_every_steps": COUNT,
    # slurm
    "nodes": COUNT,
    "tasks_per_node": COUNT,
    "cpus_per_task": COUNT,
    "signal_s": COUNT,
}


ASCENDING = ("augment.crop_scale", "augment.crop_ratio")  # [lowest, highest]


def check_range(path: str, value: Any, default: Any) -> None:
    """ConfigError for a number, or a number in a list, outside the range of the key at `path`."""
    key = path.rpartition(".")[2]
    limits = RANGES.get(path, NOT_NEGATIVE)
    numbers = list(filter(is_number, value if isinstance(value, list) else [value]))
    for number in numbers:
        if not limits.holds(number):
            example = "" if default is None or default == value else f" The default is {format_value(default)}."
            raise ConfigError(f"{path}={format_value(value)}: {key} must be {limits}.{example}")
        if key.startswith("limit_") and isinstance(number, float) and number > 1:
            raise ConfigError(
                f"{path}={format_value(value)}: expected a share up to 1.0, or a number of batches. Set {path}={round(number)}."
            )
    if path in ASCENDING and numbers != sorted(numbers):
        raise ConfigError(f"{path}={format_value(value)}: the lower value comes first. Set {path}={format_value(numbers[::-1])}.")
