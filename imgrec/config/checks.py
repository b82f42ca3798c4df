"""Which values and which combinations of a composed config are refused, before torch is imported."""

import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from imgrec.config.annotations import describe_type, format_value, matches_type, type_of
from imgrec.config.options import conf_dir, group_names, option_names, shipped_targets
from imgrec.config.ranges import NOT_NEGATIVE, check_range
from imgrec.config.schema import Node, RunConfig
from imgrec.errors import ConfigError, did_you_mean


def check_batch_divides(batch_size: int | str, devices: int) -> None:
    """ConfigError where the number of devices does not divide the global batch; "full" is cut as evenly as it goes."""
    if isinstance(batch_size, int) and batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = [n for n in range(1, devices + 1) if batch_size % n == 0]
        near = f"batch_size={lower} or batch_size={upper}" if lower else f"batch_size={upper}"
        raise ConfigError(
            f"batch_size={batch_size} is the global batch, and {devices} devices do not divide it. "
            f"Set {near}, or use {' or '.join(map(str, fits[-2:]))} device{'' if fits[-2:] == [1] else 's'}."
        )


# Keys that do nothing unless another has a value: (what must hold, what to type). Only what was typed is held to it.
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
    "trainer.early_stopping_patience": (
        lambda t: t["trainer"].get("early_stopping_patience") < t["epochs"],
        "fewer than epochs, or more epochs",
    ),
    "finetune.freeze_epochs": (
        lambda t: not t["finetune"]["freeze_epochs"] or t["weights"],
        "weights=DEFAULT or weights=RUN_FOLDER too",
    ),
}


def _check_sampling(tree: Tree, choices: Mapping[str, str]) -> None:
    sampling, weights = tree.get("sampling"), tree.get("class_weights")
    if sampling == "weighted" and not weights:
        raise ConfigError(
            "sampling=weighted, but there are no class_weights. Set 'class_weights={CLASS: 2}', or sampling=balanced for all alike."
        )
    if weights and sampling != "weighted":
        raise ConfigError(
            f"class_weights has no effect with sampling={sampling}. Set sampling=weighted, or leave class_weights out."
        )
    for name, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not NOT_NEGATIVE.holds(weight):
            raise ConfigError(
                f"class_weights.{name}={format_value(weight)}: a class is seen that many times as often as one of weight 1, so it takes a number, 0 or more. "
                f"Set 'class_weights={{{name}: 2}}'."
            )
    if sampling not in (None, "shuffle") and choices.get("optim") == "gd":
        raise ConfigError(
            f"sampling={sampling} repeats some images and leaves others out, but optim=gd takes the whole training split for every step. "
            "Set loss.class_weights=balanced, or type optim=sgd."
        )


def check_together(given: Collection[str], tree: Tree, choices: Mapping[str, str]) -> None:
    """ConfigError for a key among those `given` that has no effect beside the others, or takes the sense of a choice away."""
    for key in given:
        if key in NEEDS and not NEEDS[key][0](tree):
            value: Any = tree
            for part in key.split("."):
                value = value[part]
            raise ConfigError(
                f"{key}={format_value(value)} has no effect with the other keys. Set {NEEDS[key][1]}, or leave {key} out."
            )
    _check_sampling(tree, choices)
    for key in ("l1", "l2"):
        if tree.get("trainer", {}).get("strategy") == "fsdp" and tree["loss"].get(key):
            raise ConfigError(
                f"loss.{key}={format_value(tree['loss'][key])} needs every weight whole, and trainer.strategy=fsdp has a part of each. "
                "Set optim.weight_decay instead, or trainer.strategy=ddp."
            )
    if choices.get("optim") == "gd" and tree["batch_size"] != "full":
        raise ConfigError(
            f"batch_size={tree['batch_size']}, but optim=gd takes the whole training split for every step. "
            "Type optim=sgd for batches, or leave batch_size out."
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
                f"{override.input_line!r}: a choice is neither added nor taken away. Type {group}={some}, or leave it out."
            )
        if "defaults:" not in (conf_dir() / f"{command}.yaml").read_text():
            raise ConfigError(f"{override.input_line!r}: {command} takes its {group} from the checkpoint. Leave {group}= out.")
        given = list(option.list) if override.is_choice_sweep() else [option]
        for one in given:
            name = str(getattr(one, "text", one))
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
                f"{override.input_line!r}: there is no key {key}.{near}{_siblings(key, reference)} `python -m imgrec.{command} --help` lists the keys."
            )
        if override.is_add() or override.is_force_add():
            raise ConfigError(f"{override.input_line!r}: {key} exists. Type {override.input_line.lstrip('+')}.")
        if override.is_delete():
            raise ConfigError(f"{override.input_line!r}: keys are not deleted. Type {key}=VALUE.")


def _near_key(key: str, known: Sequence[str], choices: Sequence[str]) -> str:
    """lr -> optim.lr, optim.lrr -> optim.lr: the words at the end are compared, as a shared optim. makes any two keys alike."""
    head, _, last = key.rpartition(".")
    if places := [one for one in known if one.rpartition(".")[2] == last]:
        return f" Did you mean {places[0]}?"
    beside = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == head}
    if near := get_close_matches(last, beside, n=1, cutoff=0.6):
        return f" Did you mean {beside[near[0]]}?"
    return did_you_mean(key, choices) if not head else ""


def _siblings(key: str, reference: Node) -> str:
    node: Any = reference
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    head = key.rpartition(".")[0]
    return f" {head} has: {', '.join(k for k in node if not k.startswith('_'))}." if head and isinstance(node, dict) else ""


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _open_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose shipped value is {}: free settings that go on to a library's function."""
    for key, value in node.items():
        if value == {}:
            yield prefix + key
        elif isinstance(value, dict):
            yield from _open_keys(value, f"{prefix}{key}.")


def conform(tree: Node, reference: Node, prefix: str, *, ranges: bool = True) -> Node:
    """`tree` with the reference's number types, after each key, type and range was checked.

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
        checked[key] = conform_value(value, reference[key], path, ranges=ranges)
    return checked


def conform_value(value: Any, like: Any, path: str, *, ranges: bool = True) -> Any:
    if isinstance(like, dict) and like:
        if not isinstance(value, dict):
            raise ConfigError(
                f"{path}={format_value(value)}: {path} is a group of keys. Type {path}.KEY=VALUE; keys: {', '.join(k for k in like if not k.startswith('_'))}."
            )
        return conform(value, like, f"{path}.", ranges=ranges)
    key = path.rsplit(".", maxsplit=1)[-1]
    hint = typing.get_type_hints(RunConfig).get(key) if path.count(".") == 0 else None
    if hint in (str, str | None) and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # id=5
    if hint == dict[str, float] | None and isinstance(value, dict):
        value = {str(name): one for name, one in value.items()}  # class_weights={0: 2}
    if hint is not None and not matches_type(value, hint) and not (value is None and like is None):
        words = [str(word) for word in typing.get_args(hint)] if isinstance(value, str) else []
        near = did_you_mean(value, words) if words else ""
        raise ConfigError(
            f"{path}={format_value(value)}: {key} takes {describe_type(hint)}{near and '.'}{near or f', not {type_of(value)}.'}"
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
            takes = "a list of numbers" if isinstance(value, list) and isinstance(like, list) else type_of(like)
            raise ConfigError(
                f"{path}={format_value(value)}: {key} takes {takes}, not {type_of(value) if takes == type_of(like) else 'other values'}. The default is {format_value(like)}."
            )
    if ranges:
        check_range(path, value, like)
    return value
