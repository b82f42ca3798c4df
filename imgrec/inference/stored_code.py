"""What a checkpoint may call. Anybody may have written the file, so what it names is compared, and nothing of it imported, before it is called."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from inspect import isclass, isfunction
from typing import Any

import torchvision
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from imgrec.config.annotations import format_value
from imgrec.config.instantiate import (
    ALLOW,
    ALLOWED_PACKAGES,
    build,
    check_signature,
    in_your_packages,
    locate,
    parameter_types,
)
from imgrec.config.options import shipped_targets
from imgrec.config.schema import Node, target_nodes
from imgrec.data.image_data import ImageData
from imgrec.errors import ConfigError, ImgrecError, first_line
from imgrec.models.losses import Loss

# Beside what conf/GROUP names: the modules of libraries whose networks, optimizers, ... a stored config may name.
LIBRARIES = {
    "model": ("torchvision.models", "timm.models"),
    "optim": ("torch.optim", "timm.optim"),
    "callbacks": ("pytorch_lightning.callbacks",),
    "logger": ("pytorch_lightning.loggers",),
}
BASES = {"callbacks": "Callback", "logger": "Logger"}  # Lightning's, which is imported only where a file names such a class
BUILT = {"model": nn.Module, "data": ImageData, "loss": Loss}  # the groups that are built from a checkpoint, and what they are


def check_targets(config: Node) -> None:
    """ConfigError for a node whose `_target_` is not one for its config group."""
    for name, node in target_nodes(config):
        target, group = node["_target_"], name.partition(".")[0]
        shipped = shipped_targets(group) if group.isidentifier() else frozenset()
        if isinstance(target, str) and (target in shipped or in_your_packages(target) or _is_in_library(group, target)):
            continue
        known = " or ".join([f"what conf/{group} names", *LIBRARIES.get(group, ())]) if shipped else "nothing there"
        package = str(target).partition(".")[0]
        yours = "" if package in ALLOWED_PACKAGES else f", or if the code is yours: export {ALLOW}={package}"
        raise ConfigError(
            f"its config would call {target} as its {name}; a stored config may call {known}. Do not use this file{yours}"
        )


def build_stored(group: str, node: Node, **extra: Any) -> Any:
    """The network, data set or loss of a checked config: `build`, after a check of what is called and of its arguments."""
    target, kind = node["_target_"], BUILT[group]
    if node.get("_partial_"):
        raise ConfigError(f"{group}._partial_=true: expected a {kind.__name__}. Leave _partial_ out of its yaml.")
    if target not in shipped_targets(group):
        if in_your_packages(target) and not _is_in_library(group, target):
            _check_yours(group, target, kind)
        else:
            _check_library_arguments(group, node)
    elif group == "data":
        _check_inner(group, node)
    # Libraries take the number of classes among keywords without a name.
    check_signature(group, {key: value for key, value in node.items() if key != "num_classes"})
    try:
        return build(group, node, kind, **extra)
    except ImgrecError:
        raise
    except Exception as error:  # what a constructor raises for arguments that it was not written for
        raise ConfigError(
            f"this imgrec cannot build its {group}: {first_line(error)}. Install the imgrec that wrote it."
        ) from error


def _check_inner(name: str, node: Node) -> None:
    """ConfigError for a node in a shipped data set that is neither your data set (torch_dataset) nor a shipped one (extended)."""
    for key, inner in target_nodes(node):
        if key == "old" and inner["_target_"] in shipped_targets("data"):
            _check_inner(f"{name}.old", inner)
        else:
            _check_yours(f"{name}.{key}", inner["_target_"], Dataset)


def _is_in_library(group: str, target: str) -> bool:
    """Whether a library has this network, optimizer, callback or logger by this name, and not only an import of something else."""
    library = next((name for name in LIBRARIES.get(group, ()) if target.startswith(f"{name}.")), None)
    if library is None:
        return False
    try:
        import_module(library)
    except ImportError:
        return False
    module, _, name = target.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if isclass(found):
        if group == "model":  # not those of detection and segmentation, one package below
            here = found.__module__.rpartition(".")[0] == library
            return here and issubclass(found, nn.Module) and "num_classes" in parameter_types(found)  # type: ignore[arg-type]
        base = Optimizer if group == "optim" else getattr(sys.modules[library], BASES[group])
        return found.__module__.startswith(f"{library}.") and issubclass(found, base)
    return isfunction(found) and group == "model" and found in _network_functions(library)


@cache
def _network_functions(library: str) -> frozenset[Any]:
    """The functions that a library lists as its networks."""
    if library == "torchvision.models":
        return frozenset(map(torchvision.models.get_model_builder, torchvision.models.list_models(module=torchvision.models)))
    timm = sys.modules[library]
    return frozenset(map(timm.model_entrypoint, timm.list_models()))


def _check_library_arguments(group: str, node: Node) -> None:
    """ConfigError for an argument by which a library's network would load a file, from a path or the net."""
    for key, value in node.items():
        if key == "_target_":
            continue
        loads = key.startswith(("weights", "pretrained", "checkpoint")) and value not in (None, False)
        if loads or isinstance(value, Mapping) or (isinstance(value, str) and not value.isidentifier()):
            raise ConfigError(
                f"{group}.{key}={format_value(value)}: a stored config loads no files. Train without {key}, or name another checkpoint."
            )


def _check_yours(group: str, target: str, kind: type) -> None:
    """ConfigError unless the class or function is defined in one of your packages, and is one for this group."""
    if not isinstance(target, str) or not in_your_packages(target):
        package = str(target).partition(".")[0]
        raise ConfigError(
            f"{group}._target_={target}: a stored config calls no data set but yours. If you trust it, type: export {ALLOW}={package}"
        )
    found = locate(target)
    fits = issubclass(found, kind) if isclass(found) else isfunction(found) and group == "model"
    if group == "model":
        fits = fits and "num_classes" in parameter_types(found)
    if not fits:
        wanted = f"a {kind.__name__}" + " or a function, of num_classes," * (group == "model")
        raise ConfigError(f"{group}._target_={target}: a stored config may call {wanted} here. Do not use this file.")
    if not in_your_packages(found.__module__):
        package = found.__module__.partition(".")[0]
        raise ConfigError(
            f"{group}._target_={target} is defined in {package}. If you trust it, add it: export {ALLOW}={target.partition('.')[0]},{package}"
        )
