"""What of a run's config differs from the defaults."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from imgrec.config.compose import hydra_tree
from imgrec.config.options import conf_dir, option_names
from imgrec.config.plain_data import read_plain
from imgrec.config.schema import Node, leaves

NO_SETTINGS = ("name", "id", "runs_dir", "resume")  # where a run is, and not what it trains
# What runs differ in most often.
COMPARED_GROUPS = ("data", "model", "augment", "optim", "scheduler")
COMPARED_KEYS = ("optim.lr", "batch_size", "epochs", "seed")


def compared_keys(config: Node) -> Node:
    """`changed_keys`, and COMPARED_GROUPS and COMPARED_KEYS also at their defaults.

    TensorBoard's table has the columns of the first run: what that has at its default would be hidden of all others.
    """
    values, defaults = dict(leaves(config)), _default_options()
    shipped = {group: shipped_option(f"{group}/{defaults[group]}").get("_target_") for group in COMPARED_GROUPS}
    at_default = {group: defaults[group] for group, target in shipped.items() if config[group].get("_target_") == target}
    return at_default | {key: values[key] for key in COMPARED_KEYS if key in values} | changed_keys(config)


def changed_keys(config: Node) -> Node:
    """The keys of a run's config that differ from the shipped options nearest to it, and these options where they are no defaults.

    {"data": "mnist", "optim.lr": 0.1}: of a group that names code, the nearest option is that of the same code with the
    fewest other values; the keys of other code than imgrec ships differ all.
    """
    defaults = _default_options()
    chosen = {group: _nearest_option(group, config[group], default) for group, default in defaults.items()}
    overrides = [f"{group}={option}" for group, option in chosen.items()]
    of_data = _differing(config, overrides, [])
    if dict(leaves(hydra_tree("train", overrides, None)[0])).get("data.num_classes") is None:
        of_data.pop("data.num_classes", None)  # as many as the data has
    # Keys of the model and others are ${data.KEY} in the yaml: they differ where they are not what the data has.
    data = [(key, value, True) for key, value in leaves({"data": config["data"]}) if "${" not in str(value)]
    others = _differing(config, overrides, data)
    options = {group: option for group, option in chosen.items() if option != defaults[group]}
    return options | {key: value for key, value in of_data.items() if key.startswith("data.")} | others


def _differing(config: Node, overrides: list[str], data: list[tuple[str, Any, bool]]) -> Node:
    """The leaves that differ from the config of these options with these keys."""
    reference = dict(leaves(hydra_tree("train", overrides, None, data)[0]))
    return {key: value for key, value in leaves(config) if key not in NO_SETTINGS and reference.get(key, ...) != value}


@cache
def _default_options() -> dict[str, str]:
    (*entries,) = shipped_option("train")["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items() if option}


@cache
def shipped_option(name: str) -> Node:
    """The yaml of "data/mnist", without what it refers to."""
    content: Node = read_plain(conf_dir() / f"{name}.yaml", fix="Install imgrec again.")
    return content


def _nearest_option(group: str, node: Node, default: str) -> str:
    """The option whose code the node names, and of several that with the fewest other values, the default before others."""
    if "_target_" not in node:
        return default
    values = dict(leaves(node))

    def differences(option: str) -> Iterator[Any]:
        for key, value in leaves(shipped_option(f"{group}/{option}")):
            if not (isinstance(value, str) and "${" in value) and (key not in values or values[key] != value):
                yield key

    same = [option for option in option_names(group) if shipped_option(f"{group}/{option}").get("_target_") == node["_target_"]]
    return min(same, key=lambda option: (len(list(differences(option))), option != default), default=default)
