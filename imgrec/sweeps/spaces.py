"""What `imgrec tune` searches: a ready space for each optimizer, augmentation and loss, with what the command line fixes, replaces or adds.

A space is conf/tune/GROUP/OPTION.yaml: keys of a run with values as -m --search takes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from imgrec.config.annotations import format_value, is_number
from imgrec.config.checks import all_keys
from imgrec.config.compose import check_names, compose_config, hydra_tree, read_overrides
from imgrec.config.options import conf_dirs, group_names, option_names
from imgrec.config.overrides import FLAGS, SEARCH, Override
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import Node, dotted_types, parse_settings
from imgrec.config.values import parse_value
from imgrec.errors import ConfigError, did_you_mean, first_line
from imgrec.sweeps.arguments import TRIALS, Argument, first_options, ranges_named, read_arguments
from imgrec.sweeps.grid import PRUNE, SweepPlan, plan_sweep

SPACES = "tune"  # the folder of conf/
MEASURED_LOSS = "val/loss"  # a monitor whose values compare only where the loss is the same


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The keys of conf/tune.yaml."""

    trials: int
    prune: bool
    spaces: list[str]


class SearchedKey(NamedTuple):
    """A key of the space, for the table that is shown before the start."""

    key: str
    default: str  # its value in the first trial; "" where the space does not hold it, so that it is drawn
    values: str
    origin: str  # optim=adam, or "given"


class Tuning(NamedTuple):
    """A search, and what it searches."""

    plan: SweepPlan
    keys: list[SearchedKey]
    choices: dict[str, str]  # the option of each config group


def plan_tuning(argv: Sequence[str], config_dir: str | None) -> Tuning:
    """The search of `imgrec tune ARGV`. ConfigError for what no trial can have, a group without a space, and where nothing is left to search."""
    if flag := next((word for word in argv if word in FLAGS), None):
        raise ConfigError(
            f"{flag}: tune searches anyway. Leave it out, or type imgrec train -m {SEARCH} for your own space alone."
        )
    own = {field.name for field in fields(TuneConfig)}
    overrides = {override.key: override for override in read_overrides("tune", argv, config_dir)}
    check_names("tune", overrides.values(), first_options(overrides.values(), config_dir), config_dir)
    tree = compose_config(
        "tune", [each for each in overrides.values() if each.key in own], config_dir, types=dotted_types(TuneConfig)
    )
    config = parse_settings(TuneConfig, {key: tree[key] for key in own})
    arguments, types = read_arguments([each for each in overrides.values() if each.key not in own], True, config_dir)
    _check_spaces(config.spaces, arguments, config_dir)
    groups = group_names(config_dir)
    plain = [argument.override(argument.values[0]) for argument in arguments if not argument.is_swept or argument.key in groups]
    with ranges_named(arguments, types):
        defaults = compose_config("train", plain, config_dir)
    choices = hydra_tree("train", [text for text in plain if text.partition("=")[0] in groups], config_dir)[1]
    given = {argument.key for argument in arguments}
    ready: dict[str, str] = {}
    origins: dict[str, str] = {}
    for group in config.spaces:
        space = read_space(group, choices[group], defaults, config_dir)
        if group == "loss" and defaults["monitor"] == MEASURED_LOSS:
            continue
        ready |= {key: values for key, values in space.items() if key not in given}
        origins |= dict.fromkeys(space, f"{group}={choices[group]}")
    if not ready and not any(argument.is_swept for argument in arguments):
        raise ConfigError(
            f"spaces={format_value(config.spaces)}: nothing is left to search. Type a range, such as 'optim.lr=log(1e-4,1e-1)', "
            "or leave out a value that fixes a key."
        )
    words = [*(argument.text for argument in arguments), *(f"{key}={values}" for key, values in ready.items())]
    plan = plan_sweep([SEARCH, *words, f"{TRIALS}={config.trials}", f"{PRUNE}={str(config.prune).lower()}"], config_dir)
    swept, known = [argument for argument in plan.arguments if argument.is_swept], dict(all_keys(defaults))
    first = {argument.key: value for argument in swept if (value := _default(argument, known, types, groups)) is not None}
    keys = [
        SearchedKey(key, str(first.get(key, "")), values, origins[key] if key in ready else "given")
        for key, _, values in (argument.text.partition("=") for argument in swept)
    ]
    return Tuning(replace(plan, first=first), keys, choices)


def read_space(group: str, option: str | None, run: Node, config_dir: str | None) -> dict[str, str]:
    """Key to values of the space of an option beside the config `run`, without keys that are null in it. ConfigError where there is none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = f"{SPACES}/{group}/{option}.yaml"
    file = next((folder / name for folder in conf_dirs(config_dir) if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(
            f"{group}={option}: there is no space for it. Write {name} into a folder and add --config-dir FOLDER, "
            f"or leave {group} out of spaces=[...] and type its ranges."
        )
    space = read_mapping(file, {}, fix="Fix this file, or choose another option.")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create({**run, SPACES: space}), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file} cannot be composed: {first_line(error)}. Fix this file, or choose another option.") from error
    assert isinstance(resolved, dict)
    return {str(key): str(values) for key, values in resolved[SPACES].items() if values is not None}


def _check_spaces(spaces: Sequence[str], arguments: Sequence[Argument], config_dir: str | None) -> None:
    known = [group for group in group_names(config_dir) if option_names(f"{SPACES}/{group}", config_dir)]
    for group in spaces:
        if group not in known:
            raise ConfigError(
                f"spaces={group}: there are no spaces of {group}.{did_you_mean(group, known)} There are: {', '.join(known)}."
            )
    for argument in arguments:
        if argument.is_swept and argument.key in (*spaces, "experiment"):
            raise ConfigError(
                f"{argument.text}: each {argument.key} has a space of its own. "
                f"Type {argument.override(argument.values[0])}, and the others in searches of their own."
            )


def _default(argument: Argument, known: Mapping[str, Any], types: Mapping[str, Any], groups: Sequence[str]) -> Any:
    """The value of a swept key that a plain run has, where it is one that is searched; else None."""
    default = known.get(argument.key)
    if argument.key in groups:
        return argument.values[0]
    if argument.kind == "list":
        override = (Override(argument.override(value), "", argument.key, value) for value in argument.values)
        return next(
            (each.value for each in override if parse_value("train", each, types.get(argument.key, Any)) == default), None
        )
    low, high = map(float, argument.values)
    return default if default is not None and is_number(default) and low <= default <= high else None
