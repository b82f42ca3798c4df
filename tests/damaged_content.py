"""What a checkpoint with right checksums may hold all the same: changes of its content, which every way to load it refuses."""

from collections.abc import Callable
from typing import Any

import torch

Change = Callable[[dict[str, Any]], Any]


def _state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """That of a parameter of two dimensions or more."""
    states = checkpoint["optimizer_states"][0]["state"].values()
    return next(state for state in states if state["momentum_buffer"].ndim > 1)


def _optimizer(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["optimizer_states"][0]


OPTIMIZER: dict[str, Change] = {
    "no states": lambda c: c.pop("optimizer_states"),
    "states empty": lambda c: c.update(optimizer_states=[]),
    "two states": lambda c: c.update(optimizer_states=c["optimizer_states"] * 2),
    "states of numbers": lambda c: c.update(optimizer_states=[5]),
    "states of nothing": lambda c: c.update(optimizer_states=[{}]),
    "groups a number": lambda c: _optimizer(c).update(param_groups=5),
    "groups without params": lambda c: [group.pop("params") for group in _optimizer(c)["param_groups"]],
    "groups without lr": lambda c: [group.pop("lr") for group in _optimizer(c)["param_groups"]],
    "no state": lambda c: _optimizer(c).pop("state"),
    "state a list": lambda c: _optimizer(c).update(state=[]),
    "state of a parameter null": lambda c: _optimizer(c)["state"].update({0: None}),
    "state of a parameter a list": lambda c: _optimizer(c)["state"].update({0: [1]}),
    "momentum text": lambda c: _state(c).update(momentum_buffer="x"),
    "momentum a number": lambda c: _state(c).update(momentum_buffer=0.5),
    "momentum gone": lambda c: _state(c).update(moment=_state(c).pop("momentum_buffer")),
    "momentum small": lambda c: _state(c).update(momentum_buffer=torch.zeros(3)),
    "momentum one element": lambda c: _state(c).update(momentum_buffer=torch.zeros(1)),
    "momentum transposed": lambda c: _state(c).update(momentum_buffer=_state(c)["momentum_buffer"].transpose(0, 1)),
    "momentum large": lambda c: _state(c).update(momentum_buffer=torch.zeros(10_000)),
    "momentum expanded": lambda c: _state(c).update(momentum_buffer=torch.zeros(()).expand(_state(c)["momentum_buffer"].shape)),
    "momentum expanded at the end of memory": lambda c: _state(c).update(
        momentum_buffer=torch.zeros(10_000)[-1].expand(_state(c)["momentum_buffer"].shape)
    ),
    "momentum integers": lambda c: _state(c).update(momentum_buffer=_state(c)["momentum_buffer"].long()),
    "momentum sparse": lambda c: _state(c).update(momentum_buffer=_state(c)["momentum_buffer"].to_sparse()),
}
WEIGHTS: dict[str, Change] = {
    "no epoch": lambda c: c.pop("epoch"),
    "trained weights null": lambda c: c.update(current_model_state=None),
    "trained weights a list": lambda c: c.update(current_model_state=[]),
    "trained weights by number": lambda c: c["current_model_state"].update({5: torch.zeros(1)}),
    "trained weights lack one": lambda c: c["current_model_state"].pop(_weight(c)),
    "trained weights gone": lambda c: c.pop("current_model_state"),
    "trained weights of another shape": lambda c: c["current_model_state"].update({_weight(c): torch.zeros(3)}),
    "trained weights text": lambda c: c["current_model_state"].update({_weight(c): "x"}),
    "average lacks one": lambda c: c["state_dict"].pop(_weight(c)),
    "average of another shape": lambda c: c["state_dict"].update({_weight(c): torch.zeros(3)}),
    "averaging a number": lambda c: c.update(averaging_state=5),
}
DAMAGES = OPTIMIZER | WEIGHTS


def _weight(checkpoint: dict[str, Any]) -> str:
    return next(name for name in checkpoint["state_dict"] if name.startswith("net."))
