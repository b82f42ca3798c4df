"""Whether the saved state of an optimizer is one that its steps leave: torch compares no types and no shapes when it loads it.

A fused kernel would read and write beyond a tensor of another shape.
"""

from collections import defaultdict
from contextlib import suppress
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from imgrec.config.annotations import is_number
from imgrec.inference.metadata import is_plain

# Kernels that do not compute on the meta device; they leave the same state.
PLAIN_KERNELS = {"fused": False, "foreach": False, "capturable": False}


def check_on_load(optimizer: Optimizer) -> None:
    """Let `optimizer.load_state_dict` raise a ValueError for a state that no step of this optimizer leaves."""
    optimizer.register_load_state_dict_pre_hook(_check_state)


def _check_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """A parameter may lack a state, as one that was frozen has none, unless the optimizer has one before its first step."""
    for group, new in zip(saved["param_groups"], optimizer.param_groups, strict=False):  # torch compares their numbers
        for key, value in new.items():
            if key != "params":
                _check_like(group.get(key, value), value, f"the optimizer's {key}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [name for group in saved["param_groups"] for name in group["params"]] != list(range(len(parameters))):
        raise ValueError(f"the optimizer's parameters are not the {len(parameters)} of the network in their order")
    expected = _state_after_a_step(optimizer)
    for name, parameter in enumerate(parameters):
        state = saved["state"].get(name, {})
        if state != {} or parameter in optimizer.state:
            _check_like(state, {} if expected is None else expected[name], f"the optimizer's state of parameter {name}")
    if isinstance(optimizer, LBFGS):
        _check_history(saved["state"].get(0, {}), sum(parameter.numel() for parameter in parameters))


def _check_history(state: dict[str, Any], parameters: int) -> None:
    """LBFGS has one state, of all parameters in one vector: gradients, directions and lists of earlier ones."""
    for key, value in state.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Tensor):
                shape = each.shape if each.numel() == 1 else (parameters,)
                _check_tensor(each, each.new_empty(shape, device="meta"), f"{key} of the optimizer's state")


def _state_after_a_step(optimizer: Optimizer) -> list[dict[str, Any]] | None:
    """The state of each parameter after a step; None for an optimizer whose step needs a closure, as LBFGS.

    On the meta device, which takes no memory; where the step looks at values, on the CPU.
    """
    for device in ("meta", "cpu"):
        with suppress(Exception):  # of any class, as the optimizer may be the user's
            return _take_step(optimizer, device)
    return None


def _take_step(optimizer: Optimizer, device: str) -> list[dict[str, Any]]:
    trial = copy(optimizer)  # without its hooks, and without the scheduler's counter of steps
    trial.state = defaultdict(dict)
    trial.param_groups = []
    for group in optimizer.param_groups:
        like = [torch.zeros(p.shape, dtype=p.dtype, device=device) for p in group["params"]]
        for parameter in like:
            parameter.grad = torch.zeros_like(parameter)
        trial.param_groups.append({key: PLAIN_KERNELS.get(key, value) for key, value in group.items()} | {"params": like})
    trial.step()
    return [trial.state[parameter] for group in trial.param_groups for parameter in group["params"]]


def _check_like(saved: Any, expected: Any, name: str) -> None:
    """ValueError unless a value has the type and the shape of the expected one; of a dictionary all of its keys."""
    if isinstance(saved, Tensor) or isinstance(expected, Tensor):
        _check_tensor(saved, expected, name)
    elif isinstance(expected, dict):
        if not isinstance(saved, dict) or (missing := expected.keys() - saved.keys()):
            lacks = f" without {min(missing)}" if isinstance(saved, dict) else ""
            raise ValueError(f"{name} is a {type(saved).__name__}{lacks}")
        for key, value in saved.items():
            _check_like(value, expected.get(key), f"{key} of {name}")
    elif isinstance(expected, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(expected):
            raise ValueError(f"{name} is no list of {len(expected)} values")
        for value, wanted in zip(saved, expected, strict=True):
            _check_like(value, wanted, name)
    elif isinstance(expected, bool | int | float) and not (is_number(saved) or isinstance(saved, bool)):
        raise ValueError(f"{name} is a {type(saved).__name__}, no number")


def _check_tensor(saved: Any, expected: Any, name: str) -> None:
    if not isinstance(saved, Tensor) or (expected is not None and not isinstance(expected, Tensor)):
        raise ValueError(f"{name} is a {type(saved).__name__}, expected a {type(expected).__name__}")
    # Fused kernels take the elements from the first one on, whatever the strides: those of an expanded tensor end too early.
    if not is_plain(saved) or saved.untyped_storage().nbytes() < (saved.storage_offset() + saved.numel()) * saved.element_size():
        raise ValueError(f"{name} is no plain tensor of numbers")
    if expected is not None and saved.shape != expected.shape:
        raise ValueError(f"{name} has the shape {list(saved.shape)}, expected {list(expected.shape)}")
    if expected is not None and saved.is_floating_point() != expected.is_floating_point():
        raise ValueError(f"{name} has the type {saved.dtype}, expected {expected.dtype}")
