"""The Python behind a node's `_target_`: whether it may be called, its parameters, and the call."""

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, TypeVar

from imgrec.config.annotations import check_type, format_value
from imgrec.config.schema import Node, RunConfig, target_nodes
from imgrec.errors import ConfigError, did_you_mean

Kind = TypeVar("Kind")
# What `_target_` may name, but for the packages in the environment variable ALLOW.
ALLOWED_PACKAGES = ("imgrec", "torch", "torchvision", "torchmetrics", "timm", "pytorch_lightning")
# Keys of a group that are passed to a function of imgrec instead of its `_target_`.
EXTRA_PARAMETERS = {"optim": "imgrec.training.optimizer.batch_factor"}
GROUPS = ("data", "model", "augment", "optim", "scheduler", "loss", "logger")  # that are one node each
EXTRAS = ("timm", "wandb", "mlflow")  # packages that imgrec installs by an extra of their name
ALLOW = "IMGREC_ALLOW"  # your own packages, separated by commas


def in_your_packages(target: str) -> bool:
    """Whether `target` is in a package that the environment variable ALLOW names."""
    return target.partition(".")[0] in filter(None, (name.strip() for name in os.environ.get(ALLOW, "").split(",")))


class WorkingFolder:
    """Finds the packages that ALLOW names, and nothing else, in the working folder, where no other place has them.

    `python -m imgrec.train` looks there first, and for everything; the script `imgrec` only in its own folder.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [""]) if path is None and in_your_packages(name) else None


def find_allowed_packages() -> None:
    """Let this process import packages that ALLOW names from the working folder."""
    if WorkingFolder not in sys.meta_path:
        sys.meta_path.append(WorkingFolder)


def python_command(*arguments: str) -> list[str]:
    """Python with these arguments, which looks for modules in the working folder only where this process does.

    With `-c` or `-m` it looks there first: a json.py beside somebody's images would be called instead of Python's.
    """
    looks_here = any(not folder or (os.path.isdir(folder) and os.path.samefile(folder, ".")) for folder in sys.path)
    return [sys.executable, *([] if looks_here else ["-P"]), *arguments]


def locate(target: str) -> Callable[..., Any]:
    """The class or function named by `_target_`; ConfigError for a package outside ALLOWED_PACKAGES or a name that does not exist."""
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"_target_={target}: expected PACKAGE.MODULE.NAME of a class or function.")
    package = target.partition(".")[0]
    if package not in ALLOWED_PACKAGES and not in_your_packages(target):
        raise ConfigError(
            f"_target_={target}: code outside {', '.join(ALLOWED_PACKAGES)} is not called unless you say so. "
            f"If you trust it, type: export {ALLOW}={package}"
        )
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        reason = f": {error}."
        if error.name in EXTRAS:
            reason = f' needs {error.name}, which is not installed. Type: pip install "imgrec[{error.name}]"'
        elif error.name == package:
            reason = (
                f": Python finds no package {package}, also not in {os.getcwd()}. Install it, go to the folder that holds it, or type: "
                "export PYTHONPATH=FOLDER"
            )
        elif error.name is not None and in_your_packages(target):
            reason += f" Install it, or if it is yours, in the working folder, type: export {ALLOW}={package},{error.name.partition('.')[0]}"
        raise ConfigError(f"_target_={target}{reason}") from error
    located = getattr(module, name, None)
    if not callable(located):
        raise ConfigError(f"_target_={target}: {module_name} has no {name}.{did_you_mean(name, dir(module))}")
    return typing.cast(Callable[..., Any], located)


def node_target(node: Node) -> Callable[..., Any]:
    """`locate` of a node's `_target_`; ConfigError also for a node without one."""
    if not isinstance(node, dict) or "_target_" not in node:
        keys = ", ".join(map(str, node)) if isinstance(node, dict) else format_value(node)
        raise ConfigError(
            f"a config group without _target_ ({keys or 'empty'}). Write _target_: PACKAGE.MODULE.NAME into its yaml."
        )
    return locate(node["_target_"])


def instantiate(node: Node, **extra: Any) -> Any:
    """Call a node's `_target_` with its keys and `extra`; with `_partial_: true` return functools.partial of both.

    ConfigError where an argument that it needs is missing.
    """
    target = node_target(node)
    settings = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")} | extra
    if node.get("_partial_", False):
        return partial(target, **settings)
    try:
        _signature(target).bind(**settings)
    except TypeError as error:
        raise ConfigError(f"_target_={node['_target_']}: {error}. Write the arguments that it takes into its yaml.") from error
    return target(**settings)


def build(name: str, node: Node, kind: type[Kind], **extra: Any) -> Kind:
    """`instantiate` of the node `name`; ConfigError where that is no `kind`."""
    built = instantiate(node, **extra)
    if not isinstance(built, kind):
        raise wrong_result(name, node, f"a {kind.__name__} of {kind.__module__}", built)
    return built


def wrong_result(name: str, node: Node, expected: str, built: object) -> ConfigError:
    """The error for a node `name` whose target returned something else."""
    return ConfigError(
        f"{name}._target_={node['_target_']}: expected {expected}, and it returns a {type(built).__name__}. "
        "Name another class or function."
    )


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except ValueError as error:  # of a function or class that is written in C
        raise ConfigError(
            f"_target_={target.__name__}: Python does not know its arguments. Name a function of yours that calls it."
        ) from error


@cache
def parameter_types(target: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a target that have a name, with their types; those of its parents too where it has **keywords."""
    parameters: dict[str, Any] = {}
    constructors: list[Callable[..., Any]] = []
    if inspect.isclass(target):
        constructors = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]
    for function in constructors or [target]:
        signature = _signature(function)
        try:
            hints = typing.get_type_hints(function)
        except (NameError, TypeError):  # an annotation of a library that exists for type checkers only
            hints = {}
        for name, parameter in signature.parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(name, hints.get(name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return parameters


def check_signatures(run: RunConfig) -> None:
    """Every node's keys and value types against the signature of its `_target_`; ConfigError names the first that does not fit."""
    tree = run.to_dict()
    for node in (*(tree[group] for group in GROUPS), *(node for node in run.callbacks.values() if node is not None)):
        node_target(node)
    for name, node in target_nodes(tree):
        check_signature(name, node)


def check_signature(name: str, node: Node) -> None:
    """`check_signatures` of the node `name`."""
    known = parameter_types(locate(node["_target_"])) | (
        parameter_types(locate(EXTRA_PARAMETERS[name])) if name in EXTRA_PARAMETERS else {}
    )
    for key, value in node.items():
        if key in ("_target_", "_partial_") or (name, key, value) == ("model", "num_classes", None):
            continue  # the number of classes is set when the data is read
        if key not in known:
            raise ConfigError(
                f"{name}.{key}={format_value(value)}: {node['_target_']} takes no {key}.{did_you_mean(key, list(known))}"
            )
        check_type(f"{name}.{key}", value, known[key])
