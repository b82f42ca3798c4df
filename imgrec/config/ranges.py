"""The range of every number in conf/, checked before torch is imported. Limits are defined here and nowhere else."""

from math import inf
from typing import Any, NamedTuple

from imgrec.config.annotations import LONGEST_SHOWN, format_value, is_number
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
        below = "" if self.high == inf else f" and {'less than' if self.open_high else 'at most'} {format_value(self.high)}"
        return above + below


NOT_NEGATIVE, POSITIVE = Range(0), Range(0, open_low=True)
# Numbers that are not listed have to be 0 or more. Each value of a list has to be in the range.
_KEYS: dict[Range, str] = {
    Range(0, 2**32, open_high=True): "seed data.split_seed",
    Range(1): """
        epochs trials batch_size max_device_batch top_k size shard_images data.train_samples data.test_samples
        data.window_shards model.depth model.kernel model.widths optim.base_batch optim.ns_steps scheduler.every_epochs scheduler.milestones_epochs
        callbacks.ema.every_steps trainer.num_nodes trainer.threads trainer.save_every_steps trainer.log_every_steps
        callbacks.progressive_size.multiple
        nodes tasks_per_node cpus_per_task signal_s
        network_threads max_queue max_images""",
    Range(2): "steps data.num_classes",
    Range(1, 8192): "data.image_size",  # 8192 are 0.8 GB for one picture in colour
    Range(1, 178_956_970): "data.max_pixels max_pixels",  # from there on PIL refuses to open it
    Range(0, 65535): "port",
    Range(1, 100): "quality",
    Range(100): "resamples",  # of fewer an interval's ends are the extremes
    Range(100, 10_000): "areas",  # of fewer none has p < 0.01; 10,000 of 224 pixels a side are 6 GB
    Range(0, 100): "neighbours",  # each is a picture in the row of its image
    Range(-inf): "data.scale",
    Range(1, 604_800): "trainer.timeout_s",  # a week; torch counts it in 32 bits of milliseconds
    POSITIVE: """
        lr_min lr_max seconds body_timeout_s data.std augment.crop_ratio optim.lr optim.eps optim.max_grad_norm
        distill.temperature scheduler.power scheduler.up_epochs scheduler.down_epochs trainer.grace_s trainer.max_minutes
        trainer.limit_train_batches trainer.limit_val_batches trainer.limit_test_batches""",
    Range(0, 1_000_000_000, open_low=True): "data.cache_gb max_body_mb",  # in bytes 64 bits hold it
    Range(0, 1): """
        data.mean augment.flip augment.crop_padding augment.shift augment.erase scheduler.floor scheduler.start scheduler.end
        distill.alpha""",
    Range(0, 1, open_low=True): """
        finetune.layer_decay data.crop_share augment.crop_scale scheduler.shrink scheduler.gamma_per_epoch
        callbacks.progressive_size.end_share""",
    Range(0, 1, open_high=True): """
        model.dropout model.dense_dropout model.stage_dropout augment.zoom optim.momentum optim.dampening optim.betas optim.alpha
        scheduler.warmup_share loss.label_smoothing callbacks.ema.decay
        callbacks.progressive_size.begin_share""",
    # ReduceLROnPlateau refuses a factor of 1.
    Range(0, 1, open_low=True, open_high=True): "data.val_share data.test_share scheduler.factor coverage risk",
    Range(0, 180): "augment.rotation",
    Range(0, 89): "augment.shear",
    Range(0, 0.95): "augment.perspective",  # at 1 two corners may meet, and the image has no inverse
    Range(1, 16): "augment.randaug_ops",
    Range(0, 30): "augment.randaug_magnitude",
    Range(0, 512): "augment.elastic_sigma",  # the filter of a greater one is larger than any image
}
RANGES = {key: limits for limits, keys in _KEYS.items() for key in keys.split()}
ASCENDING = ("augment.crop_scale", "augment.crop_ratio", "scheduler.milestones_epochs")

OF_ALL = ("data.val_share", "data.test_share", "coverage", "risk")  # shares that are given as percent by mistake
SHARES_OR_COUNTS = [f"trainer.limit_{split}_batches" for split in ("train", "val", "test")]


def check_range(path: str, value: Any, default: Any) -> None:
    """ConfigError for a number, or a number in a list, outside the range of the key at `path`."""
    key = path.rpartition(".")[2]
    limits = RANGES.get(path, NOT_NEGATIVE)
    numbers = list(filter(is_number, value if isinstance(value, list) else [value]))
    for number in numbers:
        if not limits.holds(number):
            example = "" if default is None or default == value else f" The default is {format_value(default)}."
            if path in OF_ALL and 1 < number < 100:
                example = f" Set {path}={number / 100:g}."
            raise ConfigError(f"{path}={format_value(value)}: {key} must be {limits}.{example}")
        if isinstance(number, int) and number >= 2**63:
            raise ConfigError(f"{path}={format_value(number)[:LONGEST_SHOWN]}: {key} must be less than 2^63.")
        if path in SHARES_OR_COUNTS and isinstance(number, float) and number > 1:
            raise ConfigError(
                f"{path}={format_value(value)}: expected a share up to 1.0, or a number of batches. Set {path}={round(number)}."
            )
    if path in ASCENDING and numbers != sorted(numbers):
        raise ConfigError(f"{path}={format_value(value)}: the lower value comes first. Set {path}={format_value(numbers[::-1])}.")
