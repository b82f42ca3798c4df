"""What a command is told, as typed data: RunConfig for a training, and the dataclasses of the other commands from their keys."""

import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from imgrec.config.annotations import describe_type, format_value, matches_type
from imgrec.errors import ConfigError, did_you_mean

Node = dict[str, Any]
Keys = typing.TypeVar("Keys")  # the keys of a command as a frozen dataclass


@dataclass(frozen=True)
class RunConfig:
    """The resolved config of a run; the comments of conf/train.yaml say what each key means. Nodes are plain dicts with a `_target_`."""

    name: str
    id: str | None
    runs_dir: str
    resume: bool
    seed: int
    epochs: int
    batch_size: int | Literal["full"]
    max_device_batch: int
    num_workers: int | Literal["auto"]
    sampling: Literal["shuffle", "balanced", "sqrt", "weighted"]
    class_weights: dict[str, float] | None
    weights: str | None
    finetune: Node
    decay_on: Literal["weights", "all"]
    monitor: Literal["val/loss", "val/accuracy", "val/macro_f1", "val/top5"]
    data: Node
    model: Node
    augment: Node
    optim: Node
    scheduler: Node
    loss: Node
    trainer: Node
    logger: Node

    def to_dict(self) -> Node:
        """Plain nested data, as it is stored in config.yaml and in checkpoints."""
        return asdict(self)

    def with_classes(self, count: int) -> "RunConfig":
        """The run with the number of classes that the data has: what is stored needs no folder to be counted again."""
        return replace(self, data=self.data | {"num_classes": count}, model=self.model | {"num_classes": count})


def run_config(tree: Node) -> RunConfig:
    """RunConfig from a composed or stored tree; keys that are not a run's are left out."""
    return RunConfig(**{field.name: tree[field.name] for field in fields(RunConfig)})


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """Whether a lower or a higher value of a metric is better."""
    return "min" if monitor.endswith("loss") else "max"


def parse_settings(cls: type[Keys], tree: Node) -> Keys:
    """The dataclass `cls` from the keys of a composed tree; ConfigError for a value that its annotation does not allow."""
    for key, hint in typing.get_type_hints(cls).items():
        if not matches_type(tree[key], hint):
            words = [str(word) for word in typing.get_args(hint)]
            near = did_you_mean(tree[key], words) if isinstance(tree[key], str) else ""
            raise ConfigError(f"{key}={format_value(tree[key])}: {key} takes {describe_type(hint)}.{near}")
    return cls(**tree)


def leaves(node: Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
