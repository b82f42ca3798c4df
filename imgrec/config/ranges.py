"""The range of every number in conf/, checked before torch is imported."""

from math import inf
from typing import Any, NamedTuple

from imgrec.config.annotations import format_value
from imgrec.errors import ConfigError


class Range(NamedTuple):
    """From `low` to `high`; an open end is itself not allowed."""

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


COUNT, NATURAL = Range(1), Range(0)
NOT_NEGATIVE, POSITIVE = Range(0), Range(0, open_low=True)
SHARE, BELOW_ONE, INSIDE = Range(0, 1), Range(0, 1, open_high=True), Range(0, 1, open_low=True, open_high=True)
PART = Range(0, 1, open_low=True)  # of something, and not nothing

# By term: a term means the same in every file. The values of a list are held to it one by one. Every number in conf/ has one.
RANGES: dict[str, Range] = {
    # run
    "seed": Range(0, 2**63, open_high=True),
    "epochs": COUNT,
    "batch_size": COUNT,
    "max_device_batch": COUNT,
    "num_workers": NATURAL,
    "freeze_epochs": NATURAL,
    "layer_decay": PART,
    "top_k": COUNT,
    "steps": Range(2),
    "lr_min": POSITIVE,
    "lr_max": POSITIVE,
    # data
    "split_seed": Range(0, 2**32, open_high=True),
    "num_classes": Range(2),
    "image_size": COUNT,
    "channels": Range(1, 3),
    "mean": SHARE,
    "std": POSITIVE,
    "val_share": INSIDE,
    "test_share": INSIDE,
    "crop_share": PART,
    "train_samples": COUNT,
    "test_samples": COUNT,
    "noise": NOT_NEGATIVE,
    # model
    "depth": COUNT,
    "dense": NATURAL,
    "dropout": BELOW_ONE,
    "dense_dropout": BELOW_ONE,
    "stage_dropout": BELOW_ONE,
    "kernel": COUNT,
    "widths": COUNT,
    # augment
    "flip": SHARE,
    "crop_padding": SHARE,
    "crop_scale": PART,
    "crop_ratio": POSITIVE,
    "rotation": Range(0, 180),
    "shift": SHARE,
    "shear": Range(0, 89),
    "zoom": BELOW_ONE,
    "perspective": BELOW_ONE,
    "elastic_alpha": NOT_NEGATIVE,
    "elastic_sigma": NOT_NEGATIVE,
    "randaug_ops": Range(1, 16),
    "randaug_magnitude": Range(0, 30),
    "erase": SHARE,
    "mixup": NOT_NEGATIVE,
    "cutmix": NOT_NEGATIVE,
    # optim
    "lr": POSITIVE,
    "base_batch": COUNT,
    "lr_decay": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "momentum": BELOW_ONE,
    "dampening": BELOW_ONE,
    "betas": BELOW_ONE,
    "alpha": BELOW_ONE,
    "eps": POSITIVE,
    "initial_accumulator_value": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
    "ns_steps": COUNT,
    # scheduler
    "warmup_share": BELOW_ONE,
    "floor": SHARE,
    "start": SHARE,
    "end": SHARE,
    "factor": PART,
    "power": POSITIVE,
    "shrink": PART,
    "gamma_per_epoch": PART,
    "every_epochs": COUNT,
    "milestones_epochs": COUNT,
    "up_epochs": POSITIVE,
    "down_epochs": POSITIVE,
    "patience_epochs": NATURAL,
    "cooldown_epochs": NATURAL,
    "threshold": NOT_NEGATIVE,
    # loss
    "l1": NOT_NEGATIVE,
    "l2": NOT_NEGATIVE,
    "label_smoothing": BELOW_ONE,
    "gamma": NOT_NEGATIVE,
    # trainer
    "devices": NATURAL,
    "num_nodes": COUNT,
    "timeout_s": POSITIVE,
    "gradient_clip": NOT_NEGATIVE,
    "ema_decay": BELOW_ONE,
    "early_stopping_patience": NATURAL,
    "max_minutes": POSITIVE,
    "save_every_steps": COUNT,
    "save_every_minutes": NOT_NEGATIVE,
    "limit_train_batches": POSITIVE,
    "limit_val_batches": POSITIVE,
    "limit_test_batches": POSITIVE,
    "log_every_steps": COUNT,
    # slurm
    "nodes": COUNT,
    "gpus_per_node": NATURAL,
    "tasks_per_node": COUNT,
    "cpus_per_task": COUNT,
    "signal_s": COUNT,
    "requeue_on_failure": NATURAL,
}


def check_range(path: str, value: Any, default: Any) -> None:
    """ConfigError for a number, or a number in a list, outside the range of its term."""
    key = path.rpartition(".")[2]
    for one in value if isinstance(value, list) else [value]:
        if key not in RANGES or isinstance(one, bool) or not isinstance(one, int | float):
            continue
        if not RANGES[key].holds(one):
            example = "" if default is None or default == value else f" The default is {format_value(default)}."
            raise ConfigError(f"{path}={format_value(value)}: {key} must be {RANGES[key]}.{example}")
        if key.startswith("limit_") and isinstance(one, float) and one > 1:
            raise ConfigError(
                f"{path}={format_value(value)}: {key} is a share up to 1.0 or a whole number of batches. Set {path}={round(one)}."
            )
