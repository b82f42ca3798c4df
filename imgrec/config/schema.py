"""The config as typed data: RunConfig for a training, and the dataclasses of the other commands from their keys."""

import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from imgrec.config.annotations import check_type, format_value
from imgrec.config.options import shipped_targets
from imgrec.errors import ConfigError, did_you_mean

Node = dict[str, Any]
Keys = typing.TypeVar("Keys")  # the keys of a command, or of a node, as a frozen dataclass
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Split = Literal["test", "val", "train"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")  # as people read them
SetMethod = Literal["lac", "aps", "raps"]
ServedFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"]
MapMethod = Literal["gradcam", "gradients"]  # of imgrec explain
Views = Literal["flip", "crops", "ten_crops"]  # of an image, whose logits are averaged
Sampling = Literal["shuffle", "balanced", "sqrt", "weighted"]
Monitor = Literal["val/loss", "val/accuracy", "val/macro_f1", "val/top5"]
# Keys of the shipped data sets that are text: null, their default, does not show it.
OWN_TEXTS = ("file", "root", "path", "label", "split", "group", "label_from", "group_from", "skip_list")
Limit = int | float  # a number of batches, or a share of them
# Keys that configs of earlier versions lack, with what was done then.
LATER_KEYS: Node = {
    "profile": False,
    "report": False,
    "continue_from": None,
    "parent": None,
    "distill": {"teacher": None, "alpha": 0.5, "temperature": 4.0},
}


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """Whether a smaller or a larger value of a logged figure is better."""
    return "min" if monitor.endswith("loss") else "max"


@dataclass(frozen=True)
class TrainerConfig:
    """conf/trainer: devices and processes, precision, saves, limits. The yaml says what each key means."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: int | Literal["auto"] | list[int]
    num_nodes: int | Literal["auto"]
    strategy: Literal["auto", "ddp", "fsdp"]
    sync_batchnorm: bool
    threads: int | Literal["auto"]
    timeout_s: float
    grace_s: float | Literal["auto"]
    precision: Precision | Literal["auto"]
    gradient_clip: float
    channels_last: bool
    compile: bool
    pruning_thresholds: list[float]
    max_minutes: float | None
    save_every_steps: int | None
    save_every_minutes: float
    limit_train_batches: Limit
    limit_val_batches: Limit
    limit_test_batches: Limit
    deterministic: bool
    log_every_steps: int

    def on_one_device(self) -> "TrainerConfig":
        """The same on the first of the devices."""
        return replace(self, devices=self.devices[:1] if isinstance(self.devices, list) else 1)


@dataclass(frozen=True)
class ProcessesConfig:
    """The `trainer` keys of evaluate and predict."""

    timeout_s: float


@dataclass(frozen=True)
class FinetuneConfig:
    """conf/train.yaml's `finetune`."""

    freeze_epochs: int
    layer_decay: float


@dataclass(frozen=True)
class DistillConfig:
    """conf/train.yaml's `distill`."""

    teacher: str | None
    alpha: float
    temperature: float


@dataclass(frozen=True)
class DataConfig:
    """conf/data: the keys that every data set has, and in `own` its `_target_` and the keys of its class."""

    num_classes: int | None
    image_size: int
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]
    resize: Literal["squash", "crop"]
    crop_share: float
    interpolation: Literal["bilinear", "bicubic"]
    max_pixels: int
    scale: list[float] | None
    val_share: float
    split_seed: int
    changed: Literal["refuse", "accept"]
    own: Node

    @classmethod
    def from_node(cls, node: Node) -> "DataConfig":
        """ConfigError for a common key that the node lacks, or whose value has another type."""
        common = [field.name for field in fields(cls) if field.name != "own"]
        if missing := [key for key in common if key not in node]:
            raise ConfigError(
                f"data.{missing[0]} is missing: every data set has the keys {', '.join(common)}. "
                f"Write {missing[0]} into its yaml, as conf/data/imagefolder.yaml does."
            )
        own = {key: value for key, value in node.items() if key not in common}
        return parse_settings(cls, {**{key: node[key] for key in common}, "own": own}, prefix="data.")

    def to_node(self) -> Node:
        """The node, as it was composed."""
        common = asdict(self)
        own: Node = common.pop("own")
        return {**own, **common}


@dataclass(frozen=True)
class MovedData:
    """Keys of a run's data that say where it is now; None: as in the run."""

    root: str | None
    file: str | None


@dataclass(frozen=True)
class Parent:
    """The `parent` of a run that `imgrec extend` starts: of the run of `weights`, to whose classes it adds some."""

    sha256: str  # of its weights, as `weights_hash` has it
    classes: list[int]  # how many it has: those of the first run, then those that each extension has added
    frozen: bool  # whether nothing but the rows of the new classes is trained

    def parts(self, classes: int) -> list[int]:
        """Rows of the head for so many classes, those that one run has added together. ConfigError where there are too few."""
        if not self.classes or min(self.classes) < 1 or sum(self.classes) >= classes:
            raise ConfigError(f"parent.classes={format_value(self.classes)}: expected counts of fewer classes than {classes}.")
        return [*self.classes, classes - sum(self.classes)]


@dataclass(frozen=True)
class RunConfig:
    """The resolved config of a run; the comments of conf/train.yaml say what each key means. A Node is plain data with a `_target_`."""

    name: str
    id: str | None
    runs_dir: str
    resume: bool
    seed: int
    epochs: int
    time: str | None
    batch_size: int | Literal["full", "auto"]
    max_device_batch: int | Literal["auto"]
    num_workers: int | Literal["auto"]
    sampling: Sampling
    class_weights: dict[str, float] | None
    weights: str | None
    continue_from: str | None
    parent: Node | None
    finetune: FinetuneConfig
    distill: DistillConfig
    decay_on: Literal["weights", "all"]
    monitor: Monitor
    report: bool
    profile: bool
    data: DataConfig
    model: Node
    augment: Node
    optim: Node
    scheduler: Node
    loss: Node
    trainer: TrainerConfig
    callbacks: dict[str, Node]
    logger: Node

    def extended(self) -> Parent | None:
        """`parent`, read; ConfigError for another key or type."""
        return None if self.parent is None else parse_settings(Parent, self.parent, "parent.")

    def to_dict(self) -> Node:
        """Plain nested data, as it is stored in config.yaml and in checkpoints."""
        return {**asdict(self), "data": self.data.to_node()}

    @property
    def global_batch(self) -> int | Literal["full"]:
        """batch_size, once it is chosen."""
        assert self.batch_size != "auto", "with_chosen_batch comes first"
        return self.batch_size

    @property
    def device_batch(self) -> int:
        """max_device_batch, once it is chosen."""
        assert self.max_device_batch != "auto", "with_chosen_batch comes first"
        return self.max_device_batch

    def with_classes(self, count: int) -> "RunConfig":
        """The run with the number of classes that the data has: what is stored needs no folder to be counted again."""
        return replace(self, data=replace(self.data, num_classes=count), model=self.model | {"num_classes": count})

    def with_precision(self, precision: Precision) -> "RunConfig":
        """The run with the precision that "auto" stands for: its checkpoints predict with it on any machine."""
        return replace(self, trainer=replace(self.trainer, precision=precision))


def run_types(tree: Node) -> dict[str, Any]:
    """Dotted key to annotation of RunConfig, its nodes and OWN_TEXTS where a tree is a run's; evaluate and predict have other types."""
    if not {field.name for field in fields(RunConfig)} <= tree.keys():
        return {}
    data = tree["data"]
    shipped = isinstance(data, dict) and str(data.get("_target_")) in shipped_targets("data")
    return dotted_types(RunConfig) | {f"data.{key}": str | None for key in OWN_TEXTS if shipped and key in data}


def dotted_types(cls: type) -> dict[str, Any]:
    """Dotted key to annotation of a dataclass of keys, and of the dataclasses in it."""
    types = typing.get_type_hints(cls)
    nodes = {name: typing.get_type_hints(node) for name, node in types.items() if is_dataclass(node)}
    return types | {f"{name}.{key}": hint for name, hints in nodes.items() for key, hint in hints.items()}


def run_config(tree: Node) -> RunConfig:
    """RunConfig from a composed or stored tree; keys that are not a run's are left out. ConfigError for a value of another type."""
    run = {field.name: tree[field.name] for field in fields(RunConfig)}
    if not isinstance(run["data"], dict):
        raise ConfigError(f"data={format_value(run['data'])}: expected a group of keys.")
    return parse_settings(RunConfig, {**run, "data": DataConfig.from_node(run["data"])})


def parse_settings(cls: type[Keys], tree: Node, prefix: str = "") -> Keys:
    """The dataclass `cls` from the keys of a composed tree; ConfigError for a value that its annotation does not allow.

    A key whose annotation is a dataclass is parsed likewise; `prefix` stands before the keys in messages.
    """
    values: Node = {}
    hints = typing.get_type_hints(cls)
    for key in tree.keys() - hints.keys():
        raise ConfigError(
            f"{prefix}{key}={format_value(tree[key])}: there is no key {prefix}{key}.{did_you_mean(key, list(hints))}"
        )
    for key, hint in hints.items():
        if key not in tree:
            raise ConfigError(
                f"{prefix}{key} is missing. Write it into your yaml, or begin that with defaults: [default, _self_]."
            )
        value = tree[key]
        if is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, hint):
                check_type(prefix + key, value, dict)
                value = parse_settings(hint, value, f"{prefix}{key}.")
        else:
            check_type(prefix + key, value, hint)
        values[key] = value
    return cls(**values)


def leaves(node: Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def target_nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Dotted path and content of every node of a config that names code: `model`, `callbacks.ema`."""
    for key, value in node.items():
        if isinstance(value, dict):
            if "_target_" in value:
                yield f"{path}{key}", value
            else:
                yield from target_nodes(value, f"{path}{key}.")
