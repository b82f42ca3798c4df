"""From the command line and conf/ to a checked RunConfig, without importing torch.

Hydra composes. What it accepts, but should not, is refused here: a misspelt key in an experiment file or beside
`_partial_`, a `+key` that nothing reads, `seed=abc`, `optim.lr=fast`, a negative rate. The shipped yaml is the
reference: it has all keys, and its values show their types.
"""

import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from imgrec.config.annotations import format_value
from imgrec.config.checks import all_keys, check_keys, check_options, check_together, conform, key_type
from imgrec.config.named_values import named_types
from imgrec.config.options import conf_dir, conf_dirs, group_names
from imgrec.config.overrides import FLAGS, Override, read_words
from imgrec.config.plain_data import read_plain
from imgrec.config.schema import Node, run_types
from imgrec.config.values import parse_value
from imgrec.errors import ConfigError, first_line

if TYPE_CHECKING:
    from hydra.plugins.config_source import ConfigSource

COMPOSING = Lock()  # Hydra's state and the resolvers are the process', which threads share
# Of Hydra's own job, which imgrec does not run: to compose them takes a third of the time.
UNUSED = tuple(
    f"~hydra/{group}" for group in ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging")
)
SMALL_IMAGE = 64  # pixels; networks for smaller images keep their resolution in the first layers


def compose_config(
    command: str,
    argv: Sequence[str | Override],
    config_dir: str | None = None,
    *,
    types: Mapping[str, Any] | None = None,
    of_weights: Node | None = None,
) -> Node:
    """The checked, resolved tree of conf/COMMAND.yaml with overrides, as plain data.

    `types`: annotations of the keys of a command that is no training, by their dotted names. `of_weights`: the values of
    ${of_weights:KEY,DEFAULT}, where they are not the defaults.
    """
    if flag := next((word for word in argv if word in FLAGS), None):
        raise ConfigError(f"{flag}: {command} runs no sweep here. Type imgrec train {flag} ..., or remove {flag}.")
    groups = group_names(config_dir)
    overrides = read_overrides(command, argv, config_dir)
    options = [override for override in overrides if override.key in groups]
    keys = [override for override in overrides if override.key not in groups]
    check_options(command, options, config_dir)
    reference, choices = reference_tree(command, options, config_dir)
    check_keys(command, keys, reference, groups)
    hints = named_types(reference) | run_types(reference) | dict(types or {})
    defaults = dict(all_keys(reference))
    values = [
        (key.key, parse_value(command, key, key_type(key.key, defaults.get(key.key), hints)), bool(key.mark)) for key in keys
    ]
    # Before they are composed, as OmegaConf merges no list into a group of keys, and ??? is no value to it.
    for key, value, _ in values:
        if key in defaults and "${" not in format_value(value):
            conform(value, defaults[key], key, types=hints, ranges=False)
    tree = hydra_tree(command, _chosen(options), config_dir, values, of_weights)[0]
    for group, option in choices.items():
        if group != "experiment" and not isinstance(tree.get(group), dict):
            raise ConfigError(f"{group}={option} gives no keys of {group}. Write them into its yaml, without a line # @package.")
        if group != "experiment" and not isinstance(target := tree[group].get("_target_", ""), str):
            raise ConfigError(
                f"{group}._target_={format_value(target)}: expected text, PACKAGE.MODULE.NAME of a class or function."
            )
    if "name" in tree and tree["name"] is None:
        tree["name"] = choices.get("experiment") or f"{choices['data']}_{choices['model']}"
    checked: Node = conform(tree, reference, types=hints)
    check_together([override.key for override in overrides], checked, choices)
    return checked


def check_names(command: str, overrides: Iterable[Override], options: Iterable[Override], config_dir: str | None) -> None:
    """ConfigError for an override of a key that the command does not have beside those of `options` that choose one of a config group."""
    groups = group_names(config_dir)
    chosen = [option for option in options if option.key in groups]
    check_options(command, chosen, config_dir)
    keys = [override for override in overrides if override.key not in groups]
    check_keys(command, keys, reference_tree(command, chosen, config_dir)[0], groups)


def read_overrides(command: str, argv: Sequence[str | Override], config_dir: str | None = None) -> list[Override]:
    """The overrides that the words of a command line mean; ConfigError for a word that is none."""
    return read_words(command, argv, lambda: dict(all_keys(hydra_tree(command, [], config_dir)[0])), config_dir)


def reference_tree(command: str, options: Sequence[Override], config_dir: str | None) -> tuple[Node, dict[str, str]]:
    """The shipped values beside the chosen options, to which those of the command line are compared, and the choice in each group."""
    reference, choices = hydra_tree(command, _chosen(options), config_dir)
    if choices.get("experiment") is not None:  # an experiment may set any key, so the reference is composed without it
        plain = [f"{group}={choice}" for group, choice in choices.items() if group != "experiment" and choice is not None]
        reference = hydra_tree(command, plain, config_dir)[0]
    return reference, choices


def _chosen(options: Sequence[Override]) -> list[str]:
    return [f"{option.key}={option.value}" for option in options]


def hydra_tree(
    command: str,
    options: Sequence[str],
    config_dir: str | None,
    keys: Sequence[tuple[str, Any, bool]] = (),
    of_weights: Node | None = None,
) -> tuple[Node, dict[str, str]]:
    """(resolved tree, choice made in each group) of the options of config groups and of (key, value, whether to add it), unchecked.

    ConfigError where Hydra cannot compose it.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    # What the user's own yaml composes to depends on files that change and on the environment.
    resolve = _resolve if keys or of_weights or config_dir else _shipped_tree
    try:
        with COMPOSING:
            OmegaConf.register_new_resolver("by_size", by_size, replace=True)
            OmegaConf.register_new_resolver("of_weights", (of_weights or {}).get, replace=True)
            tree, choices = resolve(command, tuple(options), config_dir, tuple(keys))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:  # of a yaml of the user's
        if text := next((f"{key}={value}" for key, value, _ in keys if "${" in str(value)), None):
            raise ConfigError(
                f"{text}: expected another key in ${{}}, such as ${{seed}}, or a variable, such as ${{oc.env:HOME}}."
            ) from error
        raise ConfigError(f"the config cannot be composed: {first_line(error)}.") from error
    return pickle.loads(tree), dict(choices)


def _resolve(
    command: str, options: tuple[str, ...], config_dir: str | None, keys: tuple[tuple[str, Any, bool], ...]
) -> tuple[bytes, dict[str, str]]:
    """(pickled tree, choice made in each group)."""
    from omegaconf import OmegaConf

    composed, choices = (_compose_options if config_dir else _shipped_options)(command, options, config_dir)
    config = pickle.loads(composed)  # 0.4 ms; a deepcopy takes 3
    for key, value, add in keys:
        OmegaConf.update(config, key, value, force_add=add)
    return pickle.dumps(OmegaConf.to_container(config, resolve=True)), choices


def _compose_options(command: str, options: tuple[str, ...], config_dir: str | None) -> tuple[bytes, dict[str, str]]:
    """(pickled DictConfig, choice made in each group)."""
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
            config = hydra_compose(command, [*options, *paths, *UNUSED], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    named = group_names(config_dir)
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if group in named}
    OmegaConf.set_struct(config, None)  # what may be added is checked by the key
    del config["hydra"]
    return pickle.dumps(config), choices


# A tenth of a second and 13 KB each, and the keys of most command lines stand beside the same options.
_shipped_options = lru_cache(maxsize=1024)(_compose_options)
_shipped_tree = lru_cache(maxsize=1024)(_resolve)


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
            # Parsed once more below, as Hydra reads 1e-3 as a number; but it expands aliases, of which there may be millions.
            content = read_plain(file, fix="Fix this file, or choose another option.")
            if not isinstance(content, dict | None):
                raise ConfigError(f"{file} is no group of keys. Write _target_: PACKAGE.MODULE.NAME and its keys into it.")
            return super().load_config(config_path)

    return OwnYaml


def by_size(size: Any, small: Any, large: Any) -> Any:
    """The resolver of ${by_size:...}: `small` for images under SMALL_IMAGE pixels, else `large`."""
    # Other types are refused later, by the key of the size.
    return small if isinstance(size, int) and size < SMALL_IMAGE else large


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar reads it back."""
    # A quote is escaped, and backslashes before a quote, also the closing one, are doubled: elsewhere they are themselves.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"
