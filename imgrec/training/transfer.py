"""The initial weights of a run: random, from a checkpoint of imgrec, or a library's pretrained ones."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from imgrec.config.annotations import format_value
from imgrec.config.instantiate import build
from imgrec.config.schema import Node, RunConfig
from imgrec.data.split_record import DataRecord
from imgrec.inference.checkpoint import network_state, parse_checkpoint, read_checkpoint, read_record, state_hash
from imgrec.models.pretrained import PretrainedWeights, library_input, library_weights, transfer_weights
from imgrec.paths import find_checkpoint
from imgrec.training.new_classes import add_rows, check_parent


def initial_network(run: RunConfig, classes: Sequence[str]) -> tuple[nn.Module, dict[str, str]]:
    """The network of a run before its first step, and what the start screen says of its `weights`."""
    net = build("model", run.model, nn.Module, num_classes=len(classes))
    if run.weights is None:
        return net, {}
    parent, source = run.extended(), pretrained_weights(run.weights, run.model)
    if parent is not None:
        check_parent(run, parent, state_hash(source.state_dict))
    copied = transfer_weights(net, source, classes)
    if parent is not None:
        add_rows(net, parent, len(classes))
    expected = input_sentence(run)
    _read_checkpoint.cache_clear()  # training does not hold it in memory
    return net, {"weights": copied, "input": expected}


def expected_input(weights: str, model: Mapping[str, Any]) -> Node:
    """The preprocessing that pretrained weights were trained with, as keys of `data`; raises what `pretrained_weights` raises."""
    if not Path(weights).exists():
        return library_input(weights, model)
    stored: Mapping[str, Any] = parse_checkpoint(*_read(weights)).preprocessing
    return {key: stored[key] for key in ("image_size", "mean", "std", "resize", "crop_share", "interpolation")}


def record_of_weights(run: RunConfig) -> DataRecord | None:
    """What the splits of the run held whose weights a run begins with; None of a library's, and of a file without it."""
    if run.weights is None or not Path(run.weights).exists():
        return None
    file, checkpoint = _read(run.weights)
    return read_record(checkpoint["imgrec"], file)


def input_sentence(run: RunConfig) -> str:
    """What the pretrained weights expect of the images, and where the data has another value."""
    assert run.weights is not None
    expected = expected_input(run.weights, run.model)
    if run.data.resize == "squash":
        expected.pop("crop_share", None)  # it has no effect
    shown = {key: format_value(value) for key, value in expected.items()}
    own = {key: format_value(getattr(run.data, key)) for key in expected}
    same = ", ".join(f"{key}={value}" for key, value in own.items() if value == shown[key])
    other = [f"data.{key}={value} is not their {shown[key]}" for key, value in own.items() if value != shown[key]]
    return "; ".join([f"as these weights expect: {same or 'nothing'}", *other])


def pretrained_weights(weights: str, model: Mapping[str, Any]) -> PretrainedWeights:
    """Pretrained weights for the network of the `model` node; a path that exists is preferred to a library's name.

    CheckpointError where there are none of that name, or they cannot be read.
    """
    if not Path(weights).exists():
        return library_weights(weights, model)
    _, checkpoint = _read(weights)
    metadata, hint = checkpoint["imgrec"], _overrides_hint(checkpoint["imgrec"]["config"]["model"], model)
    return PretrainedWeights(weights, network_state(checkpoint), tuple(metadata["classes"]), hint)


def _read(weights: str) -> tuple[Path, dict[str, Any]]:
    file = find_checkpoint(weights)
    return file, _read_checkpoint(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # for the config of a run, its network and its start screen
def _read_checkpoint(file: Path, changed_ns: int) -> dict[str, Any]:
    return read_checkpoint(file)


def _overrides_hint(stored: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """' Set KEY=VALUE ....': the overrides with which `model` is the stored network; empty if it is already."""
    overrides = [] if stored["_target_"] == model["_target_"] else [f"model={str(stored['_target_']).split('.')[-2]}"]
    for key, value in stored.items():
        if key not in ("_target_", "num_classes", "channels") and (key not in model or model[key] != value):
            overrides.append(f"data.image_size={value}" if key == "image_size" else f"model.{key}={value}")
    return f" Set {' '.join(overrides)}." if overrides else ""
