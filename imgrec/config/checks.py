"""Checks of the values of a composed config and of their combinations, before torch is imported."""

import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from imgrec.config.annotations import describe_type, format_value, matches_type, type_of
from imgrec.config.options import conf_dir, group_names, option_names, shipped_targets
from imgrec.config.ranges import NOT_NEGATIVE, check_range
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, did_you_mean


def check_batch_divides(batch_size: int | str, devices: int) -> None:
    """ConfigError where the number of devices does not divide the global batch; "full" is split evenly."""
    if isinstance(batch_size, int) and batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = [n for n in range(1, devices + 1) if batch_size % n == 0]
        near = f"batch_size={lower} or batch_size={upper}" if lower else f"batch_size={upper}"
        raise ConfigError(
            f"batch_size={batch_size} is the global batch, and {devices} devices do not divide it. "
            f"Set {near}, or use {' or '.join(map(str, fits[-2:]))} device{'' if fits[-2:] == [1] else 's'}."
        )


# Keys that need the value of another key: (condition, what to type). Only keys on the command line are checked.
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
    "callbacks.early_stopping.patience": (
        lambda t: t["callbacks"]["early_stopping"]["patience"] < t["epochs"],
        "epochs to more than the patience",
    ),
    "finetune.freeze_epochs": (
        lambda t: not t["finetune"]["freeze_epochs"] or t["weights"],
        "weights=DEFAULT or weights=RUN_DIRECTORY too",
    ),
}


def _check_sampling(tree: Tree, choices: Mapping[str, str]) -> None:
    sampling, weights = tree.get("sampling"), tree.get("class_weights")
    if sampling == "weighted" and not weights:
        raise ConfigError(
            "sampling=weighted needs class_weights. Set 'class_weights={CLASS: 2}', or sampling=balanced for equal weights."
        )
    if weights and sampling != "weighted":
        raise ConfigError(
            f"class_weights has no effect with sampling={sampling}. Set sampling=weighted, or remove class_weights."
        )
    for name, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not NOT_NEGATIVE.holds(weight):
            raise ConfigError(
                f"class_weights.{name}={format_value(weight)}: expected a number of 0 or more, relative to 1 for the other classes. "
                f"Set 'class_weights={{{name}: 2}}'."
            )
    if sampling not in (None, "shuffle") and choices.get("optim") == "gd":
        raise ConfigError(
            f"sampling={sampling} repeats some images and leaves others out, but optim=gd uses the whole training split in each step. "
            "Set loss.class_weights=balanced, or type optim=sgd."
        )


def check_together(given: Collection[str], tree: Tree, choices: Mapping[str, str]) -> None:
    """ConfigError for a key among those `given` on the command line that has no effect, or for values that contradict each other."""
    for key in given:
        if key in NEEDS and not NEEDS[key][0](tree):
            value: Any = tree
            for part in key.split("."):
                value = value[part]
            raise ConfigError(f"{key}={format_value(value)} has no effect in this config. Set {NEEDS[key][1]}, or remove {key}.")
    _check_sampling(tree, choices)
    for key in ("l1", "l2"):
        if tree.get("trainer", {}).get("strategy") == "fsdp" and tree["loss"].get(key):
            raise ConfigError(
                f"loss.{key}={format_value(tree['loss'][key])} needs whole weights, but trainer.strategy=fsdp shards them. "
                "Set optim.weight_decay instead, or trainer.strategy=ddp."
            )
    if choices.get("optim") == "gd" and tree["batch_size"] != "full":
        raise ConfigError(
            f"batch_size={tree['batch_size']}, but optim=gd uses the whole training split in each step. "
            "Type optim=sgd for batches, or remove batch_size."
        )


def is_group_override(override: Any, search: Sequence[Path]) -> bool:
    return override.key_or_group in group_names(search)


def check_options(command: str, parsed: Sequence[Any], search: Sequence[Path]) -> None:
    for override in parsed:
        group, option = override.key_or_group, override.value()
        if not is_group_override(override, search):
            continue
        if option is None or override.is_add() or override.is_delete():
            some = "OPTION" if option is None else option
            raise ConfigError(
                f"{override.input_line!r}: config groups are not added or deleted. Type {group}={some}, or remove it."
            )
        if "defaults:" not in (conf_dir() / f"{command}.yaml").read_text():
            raise ConfigError(f"{override.input_line!r}: {command} reads its {group} from the checkpoint. Remove {group}=.")
        options = list(option.list) if override.is_choice_sweep() else [option]
        for value in options:
            name = str(getattr(value, "text", value))
            if name not in option_names(group, search):
                raise ConfigError(
                    f"{group}={name}: there is no such {group}.{did_you_mean(name, option_names(group, search))} There are: {', '.join(option_names(group, search))}."
                )


def check_keys(command: str, parsed: Sequence[Any], reference: Node, search: Sequence[Path]) -> None:
    known = list(_keys(reference))
    for override in parsed:
        key = override.key_or_group
        if (
            is_group_override(override, search)
            or key.startswith("hydra")
            or any(f"{key}.".startswith(f"{head}.") for head in _open_keys(reference))
        ):
            continue
        if key not in known:
            near = _near_key(key, known, group_names(search))
            raise ConfigError(
                f"{override.input_line!r}: there is no key {key}.{near}{_siblings(key, reference) or f' `imgrec {command} --help` lists the keys.'}"
            )
        if override.is_add() or override.is_force_add():
            raise ConfigError(f"{override.input_line!r}: {key} exists already. Type {override.input_line.lstrip('+')}.")
        if override.is_delete():
            raise ConfigError(f"{override.input_line!r}: keys are not deleted. Type {key}=VALUE.")


def _near_key(key: str, known: Sequence[str], choices: Sequence[str]) -> str:
    """lr -> optim.lr, optim.lrr -> optim.lr. Only the last parts are compared: with a common `optim.` any two keys are similar."""
    head, _, last = key.rpartition(".")
    if places := [one for one in known if one.rpartition(".")[2] == last]:
        return f" Did you mean {places[0]}?"
    # trainer.ema_decay -> callbacks.ema.decay
    if places := [one for one in known if one.replace(".", "_").endswith(f"_{last}")]:
        return f" Did you mean {places[0]}?"
    beside = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == head}
    if near := get_close_matches(last, beside, n=1, cutoff=0.6):
        return f" Did you mean {beside[near[0]]}?"
    return did_you_mean(key, choices) if not head else ""


def _siblings(key: str, reference: Node) -> str:
    """The keys beside a key, or beside the first part of it that there is not."""
    node, path = reference, []
    for part in key.split(".")[:-1]:
        if not isinstance(node.get(part), dict):
            break
        node = node[part]
        path.append(part)
    return f" {'.'.join(path)} has: {', '.join(k for k in node if not k.startswith('_'))}." if path else ""


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _open_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose shipped value is {}: their keys are passed to a library and are not checked."""
    for key, value in node.items():
        if value == {}:
            yield prefix + key
        elif isinstance(value, dict):
            yield from _open_keys(value, f"{prefix}{key}.")


def conform(tree: Node, reference: Node, prefix: str, *, types: Mapping[str, Any], ranges: bool = True) -> Node:
    """`tree` with the number types of the reference, its keys, types and ranges checked.

    `types`: annotations of keys at the root, which the shipped values alone do not tell.
    `ranges`: whether numbers are held to RANGES. Those under a `_target_` that imgrec does not ship are not: what they mean, that code says.
    """
    if "_target_" in tree:
        ranges = tree["_target_"] in shipped_targets()
    checked: Node = {}
    for key, value in tree.items():
        path = prefix + key
        if key not in reference:
            raise ConfigError(
                f"{path}={format_value(value)}: there is no key {path}.{did_you_mean(key, list(reference))}"
                f" Known here: {', '.join(k for k in reference if not k.startswith('_'))}."
            )
        checked[key] = conform_value(value, reference[key], path, types=types, ranges=ranges)
    return checked


def conform_value(value: Any, like: Any, path: str, *, types: Mapping[str, Any], ranges: bool = True) -> Any:
    """`value` with the number type of `like`, the shipped value of the key `path`; ConfigError where it is of another type or out of range."""
    if isinstance(like, dict) and like:
        if not isinstance(value, dict):
            raise ConfigError(
                f"{path}={format_value(value)}: expected a group of keys. Type {path}.KEY=VALUE; its keys are {', '.join(k for k in like if not k.startswith('_'))}."
            )
        return conform(value, like, f"{path}.", types={}, ranges=ranges)
    key = path.rsplit(".", maxsplit=1)[-1]
    default = f" The default is {format_value(like)}."
    hint = types.get(path)
    if hint in (str, str | None) and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # id=5
    if hint == dict[str, float] | None and isinstance(value, dict):
        value = {str(name): weight for name, weight in value.items()}  # class_weights={0: 2}
    if hint is not None and not matches_type(value, hint) and not (value is None and like is None):
        options = [str(option) for option in typing.get_args(hint)]
        near = did_you_mean(value, options) if isinstance(value, str) else ""
        raise ConfigError(
            f"{path}={format_value(value)}: expected {describe_type(hint)}.{near}{'' if near or like is None else default}"
        )
    if not (value is None or like is None or like in ("auto", "full") or hint is not None):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        share = key.startswith("limit_")  # of the batches where it is 0.5, their number where it is 2
        if isinstance(like, str) and number:
            value = str(value)
        if isinstance(like, float) and number and not share:
            value = float(value)
        fits = number if share else type(value) is type(like)
        if isinstance(like, list) and fits and any(isinstance(one, int | float) for one in like):
            fits = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
        if not fits:
            raise ConfigError(
                f"{path}={format_value(value)}: expected {'a list of numbers' if isinstance(value, list) and isinstance(like, list) else type_of(like)}.{default}"
            )
    if ranges:
        check_range(path, value, like)
    return value
