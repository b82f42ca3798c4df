"""From the command line and conf/ to a checked RunConfig, without importing torch.

Hydra composes. What it accepts, but should not, is refused here: a misspelt key in an experiment file or beside
`_partial_`, a `+key` that nothing reads, `seed=abc`, `optim.lr=fast`, a negative rate. The shipped yaml is the
reference: it has all keys, and its values show their types.
"""

import os
import re
import typing
from collections.abc import Sequence
from copy import deepcopy
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrec.config.checks import check_keys, check_options, check_together, conform
from imgrec.config.options import conf_dir, conf_dirs, group_names
from imgrec.config.plain_data import DEEPEST, read_plain
from imgrec.config.schema import Node, RunConfig, run_config, run_types
from imgrec.errors import ConfigError, first_line

if TYPE_CHECKING:
    from hydra.plugins.config_source import ConfigSource
    from omegaconf import DictConfig

SMALL_IMAGE = 64  # pixels; networks for smaller images keep their resolution in the first layers


def load_config(command: str, argv: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """Compose conf/COMMAND.yaml with the overrides of `argv` into a checked RunConfig.

    Raises ConfigError for all that can be checked by the yaml alone; `check_signatures` does the rest after the import of
    torch.
    """
    return run_config(compose_config(command, argv, config_dir))


def compose_config(command: str, argv: Sequence[str], config_dir: str | None = None) -> Node:
    """The checked, resolved tree of conf/COMMAND.yaml with overrides, as plain data."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    groups = group_names(config_dir)
    parsed: list[Override] = []
    for argument in argv:
        if _depth(argument) > DEEPEST:  # the parser and OmegaConf descend in recursion
            raise ConfigError(f"'{argument[:40]}...': brackets in more than {DEEPEST} brackets. Type a list or a group of keys.")
        try:
            parsed += OverridesParser.create().parse_overrides([argument])
        except HydraException as error:
            raise ConfigError(
                f"{argument!r} cannot be read: {first_line(error)}. Overrides look like key=value, for example optim.lr=0.01."
            ) from error
    for override in parsed:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override():
            or_list = "" if key in groups else f", or {key}=[...] for a list"
            advice = f"imgrec train -m {text} for a job of each{or_list}" if command == "train" else f"{key}=VALUE"
            raise ConfigError(f"{text!r} has several values. Type {advice}.")
        if override.package is not None:
            raise ConfigError(f"{text!r}: there is no key with @. Type {key}=VALUE.")
    options = [override for override in parsed if override.key_or_group in groups]
    keys = [override for override in parsed if override.key_or_group not in groups]
    check_options(command, options, config_dir)
    chosen = [str(override.input_line) for override in options]
    try:
        reference, choices = hydra_tree(command, chosen, config_dir)
        if choices.get("experiment") is not None:  # an experiment may set any key, so the reference is composed without it
            plain = [f"{group}={choice}" for group, choice in choices.items() if group != "experiment" and choice is not None]
            reference = hydra_tree(command, plain, config_dir)[0]
        check_keys(command, keys, reference, groups)
        tree = hydra_tree(command, chosen, config_dir, keys)[0]
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:  # of a yaml of the user's
        raise ConfigError(f"the config cannot be composed: {first_line(error)}.") from error
    for group, option in choices.items():
        if group != "experiment" and not isinstance(tree.get(group), dict):
            raise ConfigError(f"{group}={option} gives no keys of {group}. Write them into its yaml, without a line # @package.")
    if "name" in tree and tree["name"] is None:
        tree["name"] = choices.get("experiment") or f"{choices['data']}_{choices['model']}"
    checked: Node = conform(tree, reference, types=run_types(reference))
    check_together([override.key_or_group for override in parsed], checked, choices)
    return checked


def hydra_tree(
    command: str, options: Sequence[str], config_dir: str | None, keys: Sequence[Any] = ()
) -> tuple[Node, dict[str, str]]:
    """(resolved tree, choice made in each group) of the options of config groups and the overrides of keys, unchecked."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    # What the user's own yaml composes to depends on files that change and on the environment.
    compose_options = _compose_options if config_dir else _shipped_options
    composed, choices = compose_options(command, tuple(options), config_dir)
    config = deepcopy(composed)
    for override in keys:
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add() or override.is_force_add())
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    return typing.cast(Node, tree), dict(choices)


def _compose_options(command: str, options: tuple[str, ...], config_dir: str | None) -> "tuple[DictConfig, dict[str, str]]":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    outer = GlobalHydra.instance().hydra  # of a program that has its own, and calls this one
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            Plugins.instance().register(_own_yaml())
            paths = [f"hydra.searchpath=[{quoted(f'own://{own}')}]" for own in conf_dirs(config_dir)[:-1]]
            config = hydra_compose(command, [*options, *paths], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    named = group_names(config_dir)
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if group in named}
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), choices


# A tenth of a second each, and the keys of most command lines stand beside the same options.
_shipped_options = lru_cache(maxsize=64)(_compose_options)


@cache
def _own_yaml() -> "type[ConfigSource]":
    """Where Hydra reads the yaml of the user's own folder; DataError for a file that is not the yaml of a config."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.plugins.config_source import ConfigResult

    class OwnYaml(FileConfigSource):
        @staticmethod
        def scheme() -> str:
            return "own"

        def load_config(self, config_path: str) -> ConfigResult:
            file = Path(self.path) / self._normalize_file_name(config_path)
            content = read_plain(file, fix="Fix this file, or choose another option.")
            if not isinstance(content, dict | None):
                raise ConfigError(f"{file} is no group of keys. Write _target_: PACKAGE.MODULE.NAME and its keys into it.")
            return super().load_config(config_path)

    return OwnYaml


def _depth(text: str) -> int:
    """The most brackets that are open at a letter of the text."""
    return max(accumulate((letter in "[{(") - (letter in "]})") for letter in text), default=0)


def by_size(size: Any, small: Any, large: Any) -> Any:
    """The resolver of ${by_size:...}: `small` for images under SMALL_IMAGE pixels, else `large`."""
    # Other types are refused later, by the key of the size.
    return small if isinstance(size, int) and size < SMALL_IMAGE else large


def quote_values(argv: Sequence[str], keys: Sequence[str]) -> list[str]:
    """`argv` with the values of `keys` quoted for Hydra, whose grammar does not accept blanks, '=', ',' and '(' in file names.

    Lists and what is quoted already stay, and so does null.
    """
    arguments = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        is_text = key in keys and equals and value != "null" and not value.startswith(("[", "'", '"'))
        arguments.append(f"{key}={quoted(os.path.expanduser(value))}" if is_text else argument)
    return arguments


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar reads it back."""
    # A quote is escaped, and backslashes before a quote, also the closing one, are doubled: elsewhere they are themselves.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"
