"""Whether the content of a checkpoint has the types and sizes that imgrec writes: torch loads any plain data."""

import typing
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from imgrec.config.annotations import check_type
from imgrec.config.checks import conform
from imgrec.config.plain_data import check_size
from imgrec.config.schema import LATER_KEYS, Node, RunConfig, run_config, run_types
from imgrec.data.decode import Preprocessing
from imgrec.data.image_data import ImageData
from imgrec.errors import ConfigError
from imgrec.inference.calibration import CALIBRATION, Calibration
from imgrec.inference.stored_code import BUILT

TEACHER = "teacher"  # in the "imgrec" entry: what the network has learned from beside the labels
SOUP = "soup"  # likewise: the runs of whose weights it is the mean
TRAINED = "current_model_state"  # Lightning's name for the trained weights where the average stands in their place
WRITTEN: dict[str, Any] = {"config": dict, "classes": list[str], "preprocessing": dict, "versions": dict}


def check_content(checkpoint: dict[Any, Any], file_size: int) -> None:
    """ConfigError unless the weights are tensors no larger than the file, and the "imgrec" entry is plain data with the keys it needs."""
    info = checkpoint["imgrec"]
    for key, kind in WRITTEN.items():
        if key not in info:
            raise ConfigError(f"it lacks '{key}' in its 'imgrec' entry.")
        check_type(f"'{key}'", info[key], kind)
    if not isinstance(record := info.get("data", ""), Tensor | None):
        raise ConfigError("it lacks 'data' in its 'imgrec' entry.")
    if record is not None and not (is_plain(record) and record.dtype == torch.uint8 and record.numel() < file_size):
        raise ConfigError("'data' in its 'imgrec' entry is no record of images.")
    if CALIBRATION in info:
        check_type(f"'{CALIBRATION}'", stored := info[CALIBRATION], dict)
        _check_weights(f"{CALIBRATION}.validation", stored.get("validation"), file_size)
        Calibration.unpack(stored, classes=len(info["classes"]))
    if TEACHER in info:
        check_type(f"'{TEACHER}'", info[TEACHER], dict)
        for key in ("file", "weights"):
            check_type(f"{TEACHER}.{key}", info[TEACHER].get(key), str)
    metadata = {key: value for key, value in info.items() if key not in ("classes", "data", CALIBRATION)}
    check_size(metadata)
    _check_plain(metadata)
    for key in ("state_dict", TRAINED):
        if key in checkpoint:
            _check_weights(key, checkpoint[key], file_size)


def _check_weights(key: str, weights: Any, file_size: int) -> None:
    check_type(f"'{key}'", weights, dict)
    for name, tensor in weights.items():
        if not isinstance(name, str) or not is_plain(tensor):
            raise ConfigError(f"'{key}' has no plain tensor of numbers as {name}.")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > file_size:
        raise ConfigError("its tensors are larger than the file.")


def is_plain(tensor: object) -> bool:
    """Whether it is a tensor of numbers in memory."""
    if not isinstance(tensor, Tensor) or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.layout == torch.strided and not tensor.is_meta


def check_metadata(checkpoint: dict[str, Any]) -> tuple[RunConfig, Preprocessing]:
    """The config and the preprocessing of a checkpoint with a checked content; ConfigError for a type or range that they do not have."""
    info = checkpoint["imgrec"]
    check_type("'epoch'", checkpoint.get("epoch"), int)
    if not 0 < len(set(info["classes"])) == len(info["classes"]):
        raise ConfigError(f"'classes' has {len(info['classes'])} names, {len(set(info['classes']))} of them different.")
    written, stored = LATER_KEYS | info["config"], {}
    for field in fields(RunConfig):
        if field.name not in written:
            raise ConfigError(f"it lacks '{field.name}' in its config.")
        stored[field.name] = written[field.name]
    run = run_config(conform(stored, stored, types=run_types(stored)))
    for group in BUILT:
        if "_target_" not in stored[group]:
            raise ConfigError(f"it lacks '_target_' in its {group}.")
    preprocessing: Node = {}
    for key, kind in typing.get_type_hints(Preprocessing).items():
        preprocessing[key] = info["preprocessing"].get(key)
        check_type(f"preprocessing.{key}", preprocessing[key], kind)
    conform({"data": preprocessing}, {"data": preprocessing}, types={})  # their ranges
    common = {field.name: getattr(run.data, field.name) for field in fields(run.data) if field.name != "own"}
    ImageData(**common | preprocessing)  # and whether they fit together
    return run, typing.cast(Preprocessing, preprocessing)


def _check_plain(node: Any) -> None:
    """ConfigError unless a node of a bounded size is made of dictionaries by text, lists, numbers, text and null."""
    if isinstance(node, dict):
        if not all(isinstance(key, str) for key in node):
            raise ConfigError("there is a key in its metadata that is no text.")
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            _check_plain(value)
    elif not isinstance(node, bool | int | float | str | None):
        raise ConfigError(f"there is a {type(node).__name__} in its metadata.")
