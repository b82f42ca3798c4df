"""Which values and which combinations of a composed config are refused, before torch is imported."""

from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Any, NamedTuple

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
            example = "" if default is None or default == value else f" The default is {show(default)}."
            raise ConfigError(f"{path}={show(value)}: {key} must be {RANGES[key]}.{example}")
        if key.startswith("limit_") and isinstance(one, float) and one > 1:
            raise ConfigError(
                f"{path}={show(value)}: {key} is a share up to 1.0 or a whole number of batches. Set {path}={round(one)}."
            )


def check_devices(batch_size: int | str, devices: int) -> None:
    """ConfigError where the number of devices does not divide the global batch; "full" is cut as evenly as it goes."""
    if isinstance(batch_size, int) and batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = [n for n in range(1, devices + 1) if batch_size % n == 0]
        near = f"batch_size={lower} or batch_size={upper}" if lower else f"batch_size={upper}"
        raise ConfigError(
            f"batch_size={batch_size} is the global batch, and {devices} devices do not divide it. "
            f"Set {near}, or use {' or '.join(map(str, fits[-2:]))} device{'' if fits[-2:] == [1] else 's'}."
        )


def show(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


# Keys that do nothing unless another has a value: (what must hold, what to type). Only what was typed is held to it.
Tree = Mapping[str, Any]
NEEDS: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "augment.randaug_ops": (lambda t: t["augment"].get("policy") == "randaug", "augment=randaug or augment.policy=randaug"),
    "augment.randaug_magnitude": (lambda t: t["augment"].get("policy") == "randaug", "augment=randaug or augment.policy=randaug"),
    "augment.autoaug_policy": (lambda t: t["augment"].get("policy") == "autoaug", "augment=autoaug or augment.policy=autoaug"),
    "augment.elastic_sigma": (lambda t: t["augment"].get("elastic_alpha"), "augment=elastic or augment.elastic_alpha=30"),
    "augment.crop_ratio": (lambda t: t["augment"].get("crop_scale") is not None, "augment.crop_scale=[0.35,1.0]"),
    "augment.fill": (
        lambda t: any(
            t["augment"].get(key)
            for key in ("crop_padding", "rotation", "shift", "shear", "zoom", "perspective", "elastic_alpha")
        ),
        "augment=affine or another that moves pixels",
    ),
    "data.crop_share": (lambda t: t["data"].get("resize") == "crop", "data.resize=crop"),
    "decay_on": (
        lambda t: t["optim"].get("weight_decay") or t["loss"].get("l1") or t["loss"].get("l2"),
        "optim.weight_decay=0.0005, loss.l1 or loss.l2",
    ),
    "optim.base_batch": (
        lambda t: t["optim"]["base_batch"] is None or t["optim"].get("batch_rule") != "none",
        "optim.batch_rule=linear or optim.batch_rule=sqrt",
    ),
    "optim.batch_rule": (
        lambda t: t["optim"].get("base_batch") is not None,
        "optim.base_batch=256, the batch that optim.lr is for",
    ),
    "optim.dampening": (lambda t: t["optim"].get("momentum"), "optim.momentum=0.9"),
    "optim.nesterov": (lambda t: not t["optim"].get("nesterov") or t["optim"].get("momentum"), "optim.momentum=0.9"),
    "trainer.early_stopping_patience": (
        lambda t: t["trainer"].get("early_stopping_patience") < t["epochs"],
        "fewer than epochs, or more epochs",
    ),
    "finetune.freeze_epochs": (
        lambda t: not t["finetune"]["freeze_epochs"] or t["weights"],
        "weights=DEFAULT or weights=RUN_FOLDER too",
    ),
}


def _check_sampling(tree: Tree, choices: Mapping[str, str]) -> None:
    sampling, weights = tree.get("sampling"), tree.get("class_weights")
    if sampling == "weighted" and not weights:
        raise ConfigError(
            "sampling=weighted, but there are no class_weights. Set 'class_weights={CLASS: 2}', or sampling=balanced for all alike."
        )
    if weights and sampling != "weighted":
        raise ConfigError(
            f"class_weights has no effect with sampling={sampling}. Set sampling=weighted, or leave class_weights out."
        )
    for name, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not NOT_NEGATIVE.holds(weight):
            raise ConfigError(
                f"class_weights.{name}={show(weight)}: a class is seen that many times as often as one of weight 1, so it takes a number, 0 or more. "
                f"Set 'class_weights={{{name}: 2}}'."
            )
    if sampling not in (None, "shuffle") and choices.get("optim") == "gd":
        raise ConfigError(
            f"sampling={sampling} repeats some images and leaves others out, but optim=gd takes the whole training split for every step. "
            "Set loss.class_weights=balanced, or type optim=sgd."
        )


def check_together(given: Collection[str], tree: Tree, choices: Mapping[str, str]) -> None:
    """ConfigError for a key among those `given` that has no effect beside the others, or takes the sense of a choice away."""
    for key in given:
        if key in NEEDS and not NEEDS[key][0](tree):
            value: Any = tree
            for part in key.split("."):
                value = value[part]
            raise ConfigError(f"{key}={show(value)} has no effect with the other keys. Set {NEEDS[key][1]}, or leave {key} out.")
    _check_sampling(tree, choices)
    for key in ("l1", "l2"):
        if tree.get("trainer", {}).get("strategy") == "fsdp" and tree["loss"].get(key):
            raise ConfigError(
                f"loss.{key}={show(tree['loss'][key])} needs every weight whole, and trainer.strategy=fsdp has a part of each. "
                "Set optim.weight_decay instead, or trainer.strategy=ddp."
            )
    if choices.get("optim") == "gd" and tree["batch_size"] != "full":
        raise ConfigError(
            f"batch_size={tree['batch_size']}, but optim=gd takes the whole training split for every step. "
            "Type optim=sgd for batches, or leave batch_size out."
        )
