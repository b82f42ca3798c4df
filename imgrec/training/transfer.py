"""The initial weights of a run: random, from a checkpoint of imgrec, or a library's pretrained ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from imgrec.config.annotations import format_value
from imgrec.config.instantiate import build
from imgrec.config.schema import Node, RunConfig
from imgrec.inference.checkpoint import load_checkpoint, network_state, read_checkpoint
from imgrec.models.pretrained import PretrainedWeights, library_input, library_weights, transfer_weights


def initial_network(model: Node, weights: str | None, classes: Sequence[str]) -> tuple[nn.Module, str | None]:
    """The network of a run before its first step, and a sentence that says what was copied from `weights`."""
    net = build("model", model, nn.Module, num_classes=len(classes))
    return net, transfer_weights(net, pretrained_weights(weights, model), classes) if weights else None


def expected_input(weights: str, model: Mapping[str, Any]) -> Node:
    """The preprocessing that pretrained weights were trained with, as keys of `data`; raises what `pretrained_weights` raises."""
    if not Path(weights).exists():
        return library_input(weights, model)
    stored: Mapping[str, Any] = load_checkpoint(weights).preprocessing
    return {key: stored[key] for key in ("image_size", "mean", "std", "resize", "crop_share", "interpolation")}


def input_sentence(run: RunConfig) -> str | None:
    """What the pretrained weights expect of the images, and where the data has another value; None without weights."""
    if run.weights is None:
        return None
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
    checkpoint = read_checkpoint(Path(weights))
    metadata, hint = checkpoint["imgrec"], _overrides_hint(checkpoint["imgrec"]["config"]["model"], model)
    return PretrainedWeights(weights, network_state(checkpoint), tuple(metadata["classes"]), hint)


def _overrides_hint(stored: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """' Set KEY=VALUE ....': the overrides with which `model` is the stored network; empty if it is already."""
    overrides = [] if stored["_target_"] == model["_target_"] else [f"model={str(stored['_target_']).split('.')[-2]}"]
    for key, value in stored.items():
        if key not in ("_target_", "num_classes", "channels") and (key not in model or model[key] != value):
            overrides.append(f"data.image_size={value}" if key == "image_size" else f"model.{key}={value}")
    return f" Set {' '.join(overrides)}." if overrides else ""
