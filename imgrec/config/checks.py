"""Checks of the values of a composed config and of their combinations, before torch is imported."""

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from imgrec.config.annotations import check_type, format_value, is_number, matches_type
from imgrec.config.durations import parse_time
from imgrec.config.options import conf_dir, option_names, shipped_targets
from imgrec.config.ranges import NOT_NEGATIVE, check_range
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, did_you_mean, nearest
from imgrec.files import did_you_mean_path

# Keys that need the value of another key: (condition, what to type). Only keys on the command line are checked.
Tree = Mapping[str, Any]
MOVES_PIXELS = ("crop_padding", "rotation", "shift", "shear", "zoom", "perspective", "elastic_alpha")
NEEDS: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "augment.randaug_ops": (lambda t: t["augment"].get("policy") == "randaug", "augment=randaug or augment.policy=randaug"),
    "augment.randaug_magnitude": (lambda t: t["augment"].get("policy") == "randaug", "augment=randaug or augment.policy=randaug"),
    "augment.autoaug_policy": (lambda t: t["augment"].get("policy") == "autoaug", "augment=autoaug or augment.policy=autoaug"),
    "augment.elastic_sigma": (lambda t: t["augment"].get("elastic_alpha"), "augment=elastic or augment.elastic_alpha=30"),
    "augment.crop_ratio": (lambda t: t["augment"].get("crop_scale") is not None, "augment.crop_scale=[0.35,1.0]"),
    "augment.fill": (lambda t: any(map(t["augment"].get, MOVES_PIXELS)), "augment=affine or another that moves pixels"),
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
        lambda t: t["time"] or t["callbacks"]["early_stopping"]["patience"] < t["epochs"],
        "epochs to more than the patience",
    ),
    "sets": (lambda t: t["coverage"] is not None, "coverage=0.95"),
    "sets_by_class": (lambda t: t["coverage"] is not None, "coverage=0.95"),
    "size": (lambda t: t["format"] != "keep", "format=jpeg or format=raw"),
    "quality": (lambda t: t["format"] == "jpeg", "format=jpeg"),
    "distill.alpha": (lambda t: t["distill"]["teacher"], "distill.teacher=RUN_DIRECTORY too"),
    "distill.temperature": (lambda t: t["distill"]["teacher"], "distill.teacher=RUN_DIRECTORY too"),
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
        if not is_number(weight) or not NOT_NEGATIVE.holds(weight):
            raise ConfigError(
                f"class_weights.{name}={format_value(weight)}: expected a number of 0 or more, relative to 1 for the other classes. "
                f"Set 'class_weights={{{name}: 2}}'."
            )
    if sampling not in (None, "shuffle") and choices.get("optim") == "gd":
        raise ConfigError(
            f"sampling={sampling} repeats some images and leaves others out, but optim=gd uses the whole training split in each step. "
            "Set loss.class_weights=balanced, or type optim=sgd."
        )


def _check_model(model: Tree, data: Tree) -> None:
    own = model.get("_target_") not in shipped_targets()  # channels of a network of the user's own may be another thing
    for key in ("num_classes",) if own else ("num_classes", "channels", "image_size"):
        if (value := model.get(key)) not in (None, data.get(key)):
            raise ConfigError(f"model.{key}={format_value(value)}: the data says it. Set data.{key}={format_value(value)}.")


def check_together(keys: Collection[str], tree: Tree, choices: Mapping[str, str]) -> None:
    """ConfigError for a key among `keys`, those on the command line, that has no effect, or for values that contradict each other."""
    for key in keys:
        _check_parents(key, tree)
        if key in NEEDS and not NEEDS[key][0](tree):
            value = format_value(reduce(getitem, key.split("."), tree))
            raise ConfigError(f"{key}={value} has no effect in this config. Set {NEEDS[key][1]}, or remove {key}.")
    if "epochs" in tree and tree["time"] is not None and parse_time(tree["time"]) == 0:
        raise ConfigError(f"time={tree['time']}: expected more than 0. Set time=30m, or time=null.")
    _check_sampling(tree, choices)
    _check_model(tree.get("model", {}), tree.get("data", {}))
    if choices.get("optim") == "nesterov" and tree["optim"]["nesterov"] and not tree["optim"]["momentum"]:
        raise ConfigError("optim.momentum=0.0: optim.nesterov=true needs more than 0. Set optim.momentum=0.9, or type optim=sgd.")
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


def _check_parents(key: str, tree: Tree) -> None:
    """ConfigError for a key of a group of keys that is null, such as that of a callback that is switched off."""
    parts, group = key.split("."), tree
    for end, part in enumerate(parts[:-1], 1):
        if not isinstance(group, Mapping) or part not in group:
            return
        if (group := group[part]) is None:
            off = ".".join(parts[:end])
            raise ConfigError(f"{key} has no effect with {off}=null. Remove one of them.")


# What an option that is not there may be meant for.
OTHER_OPTIONS = {
    "model": " For a network of torchvision or timm type model=torchvision model.name={0}, or model=timm model.name={0}.",
    "data": " For your own images type data=FOLDER, or data=table data.file=TABLE.csv.",
}


def check_options(command: str, overrides: Sequence[Any], config_dir: str | None) -> None:
    """ConfigError for an override of a config group that names no option, or that the command has no use for."""
    for override in overrides:
        group, option, text = override.key, override.value, repr(override.text)
        names = option_names(group, config_dir)
        if option == "null" or override.mark:
            some = "OPTION" if option in ("null", "") else option
            raise ConfigError(f"{text}: config groups are not added or deleted. Type {group}={some}, or remove it.")
        if "defaults:" not in (conf_dir() / f"{command}.yaml").read_text():
            raise ConfigError(f"{text}: {command} reads its {group} from the checkpoint. Remove {group}=.")
        if option in names:
            continue
        if re.search(r"[,(]", option):
            raise ConfigError(f"{text} has several values. Type imgrec train -m {shlex.quote(override.text)} for a job of each.")
        other = OTHER_OPTIONS.get(group, "").format(option)
        near = did_you_mean(option, names) or (did_you_mean_path(option, folder=True) if group == "data" else "")
        raise ConfigError(
            f"{group}={option}: there is no such {group}{' and no such folder' * (group == 'data')}.{near} "
            f"There are: {', '.join(names)}.{other}"
        )


# Keys of earlier versions, and what to type instead.
RENAMED = {
    "extend": "To train a finished run longer set continue_from={0}; for more classes type imgrec extend {0} data.root=FOLDER.",
}


def check_keys(command: str, overrides: Sequence[Any], reference: Node, groups: Sequence[str]) -> None:
    """ConfigError for an override of a key that the reference does not have, or that adds or deletes one."""
    known = dict(all_keys(reference))
    free = tuple(f"{key}." for key, value in known.items() if value == {})  # keys in it are passed to a library unchecked
    for override in overrides:
        key, text = override.key, repr(override.text)
        if "@" in key:
            raise ConfigError(f"{text}: there is no key with @. Type {key.partition('@')[0]}=VALUE.")
        if override.mark == "~":
            raise ConfigError(f"{text}: keys are not deleted. Type {key}=VALUE.")
        if f"{key}.".startswith(free):
            continue
        if key not in known:
            if key in RENAMED:
                raise ConfigError(f"{text}: there is no key {key}. {RENAMED[key].format(override.value)}")
            keys = _siblings(key, known) or f" `imgrec {command} --help` lists the keys."
            if key == "data.root":
                raise ConfigError(
                    f"{text}: this data set has no key {key}. For a folder of images type data={override.value or 'FOLDER'}."
                )
            near = nearest_key(key, known, groups)
            raise ConfigError(f"{text}: there is no key {key}.{f' Did you mean {near}?' if near else ''}{keys}")
        if override.mark:
            raise ConfigError(f"{text}: {key} exists already. Type {shlex.quote(override.text.lstrip('+'))}.")


def nearest_key(key: str, known: Collection[str], groups: Sequence[str]) -> str | None:
    """lr -> optim.lr, optim.lrr -> optim.lr. Only the last parts are compared: with a common `optim.` any two keys are similar."""
    head, _, last = key.rpartition(".")
    same = [name for name in known if name.rpartition(".")[2] == last]
    # trainer.ema_decay -> callbacks.ema.decay
    if near := same or [name for name in known if name.replace(".", "_").endswith(f"_{last}")]:
        return near[0]
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == head}
    if (near_end := nearest(last, list(beside))) is not None:
        return beside[near_end]
    if not head and (group := nearest(key, groups)) is not None:
        return group
    # trainer.max_epochs, as Lightning calls it -> epochs
    return next((name for name in known if last.endswith(f"_{name}")), None)


def _siblings(key: str, known: Mapping[str, Any]) -> str:
    """The keys beside a key, or beside the first part of it that there is not."""
    while key := key.rpartition(".")[0]:
        if isinstance(known.get(key), dict):
            return f" {key} has: {_listed(known[key])}."
    return ""


def _listed(node: Node) -> str:
    return ", ".join(key for key in map(str, node) if not key.startswith("_"))


def all_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every key, also of the groups of keys."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from all_keys(value, f"{prefix}{key}.")


def conform(value: Any, like: Any, path: str = "", *, types: Mapping[str, Any], ranges: bool = True) -> Any:
    """`value` with the number types of `like`, the shipped value of the key `path`; ConfigError for another key, type or range.

    `types`: annotations of dotted keys; of other keys the shipped value shows the type.
    `ranges`: whether numbers are held to RANGES. Those under a `_target_` that imgrec does not ship are not: what they mean, that code says.
    """
    if isinstance(like, dict) and like:
        return _conform_group(value, like, path, types=types, ranges=ranges)
    hint = key_type(path, like, types)
    if hint is float and is_number(value):
        value = float(str(value))  # an integer of any size; inf is in no range
    if isinstance(value, str | list):
        value = _expanduser(value)
    if isinstance(like, list) and isinstance(value, list) and any(isinstance(number, float) for number in like):
        value = [float(str(number)) if is_number(number) else number for number in value]  # Adam refuses betas=[0,0.9]
    if is_number(value) and not matches_type(value, hint) and matches_type(str(value), hint):
        value = str(value)  # id=5
    if hint == dict[str, float] | None and isinstance(value, dict):
        value = {str(name): weight for name, weight in value.items()}  # class_weights={0: 2}
    if value is not None or (like is not None and path in types):
        check_type(path, value, hint, like)
    if ranges:
        check_range(path, value, like)
    return value


def _conform_group(value: Any, like: Node, path: str, *, types: Mapping[str, Any], ranges: bool) -> Node | None:
    """`conform` for a group of keys. null switches a callback off."""
    callback = path.startswith("callbacks.") and "_target_" in like
    if callback and value is None:
        return None
    if not isinstance(value, dict):
        null = f" Type {path}=null to switch it off." * callback
        keys = f" Type {path}.KEY=VALUE; its keys are {_listed(like)}." * bool(_listed(like))
        raise ConfigError(f"{path}={format_value(value)}: expected a group of keys.{null}{keys}")
    if "_target_" in value:
        ranges = any(value["_target_"] == target for target in shipped_targets())
    checked: Node = {}
    for key, inner in value.items():
        name = f"{path}.{key}" if path else key
        if key not in like:
            raise ConfigError(
                f"{name}={format_value(inner)}: there is no key {name}.{did_you_mean(key, list(like))} Known here: {_listed(like)}."
            )
        checked[key] = conform(inner, like[key], name, types=types, ranges=ranges)
    return checked


def _expanduser(value: str | list[Any]) -> str | list[Any]:
    """~/photos as the path that a shell would make of it."""
    if isinstance(value, list):
        return [os.path.expanduser(text) if isinstance(text, str) else text for text in value]
    return os.path.expanduser(value)


def key_type(path: str, like: Any, types: Mapping[str, Any]) -> Any:
    """The annotation of a key, or the one that its shipped value tells where it has none."""
    return types[path] if path in types else _shipped_type(like)


def _shipped_type(value: Any) -> Any:
    if value in (None, "auto", "full"):
        return Any
    return list[float] if isinstance(value, list) and any(map(is_number, value)) else type(value)
