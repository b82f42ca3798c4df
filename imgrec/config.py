"""From the command line and conf/ to a checked RunConfig, without importing torch.

Hydra composes; what it lets pass is refused here: a misspelt key in an experiment file or beside `_partial_`, a `+key` that nothing reads,
`seed=abc`, `optim.lr=fast`, a rate below zero. The shipped yaml is the reference: its keys are the keys there are, its values show the types.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from imgrec.annotations import describe, kind, matches
from imgrec.errors import ConfigError, did_you_mean
from imgrec.rules import check_range, check_together, show

SMALL_IMAGE = 64  # pixels; networks for smaller images keep their resolution in the first layers

Node = dict[str, Any]
Settings = typing.TypeVar("Settings")  # the keys of a command as a frozen dataclass


@dataclass(frozen=True)
class RunConfig:
    """The resolved config of a run; the comments of conf/train.yaml say what each key means. Nodes are plain dicts with a `_target_`."""

    name: str
    id: str | None
    runs_dir: str
    resume: bool
    seed: int
    epochs: int
    batch_size: int | Literal["full"]
    max_device_batch: int
    num_workers: int | Literal["auto"]
    sampling: Literal["shuffle", "balanced", "sqrt", "weighted"]
    class_weights: dict[str, float] | None
    weights: str | None
    finetune: Node
    decay_on: Literal["weights", "all"]
    monitor: Literal["val/loss", "val/accuracy", "val/macro_f1", "val/top5"]
    data: Node
    model: Node
    augment: Node
    optim: Node
    scheduler: Node
    loss: Node
    trainer: Node
    logger: Node

    def to_dict(self) -> Node:
        """Plain nested data, as it is stored in config.yaml and in checkpoints."""
        return asdict(self)

    def with_classes(self, count: int) -> "RunConfig":
        """The run with the number of classes that the data has: what is stored needs no folder to be counted again."""
        return replace(self, data=self.data | {"num_classes": count}, model=self.model | {"num_classes": count})


def conf_dir() -> Path:
    """The shipped yaml: conf/ of a checkout, or imgrec/conf of an installed wheel."""
    package = Path(__file__).parent
    for found in (package / "conf", package.parent / "conf"):
        if (found / "train.yaml").is_file():
            return found
    raise ConfigError(f"no conf/train.yaml beside {package}: the installation is incomplete. Install imgrec again.")


def options(group: str, search: Sequence[Path] = ()) -> list[str]:
    """Names that can follow `group=`: the yaml files in that folder, of the shipped conf/ and of the user's own."""
    return sorted({file.stem for root in (conf_dir(), *search) for file in (root / group).glob("*.yaml")})


def groups(search: Sequence[Path] = ()) -> list[str]:
    """Names of the choices: the folders in conf/."""
    return sorted(
        {
            folder.name
            for root in (conf_dir(), *search)
            for folder in root.iterdir()
            if folder.is_dir() and any(folder.glob("*.yaml"))
        }
    )


def load(command: str, argv: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """Compose conf/COMMAND.yaml with the overrides of `argv` into a checked RunConfig.

    Raises ConfigError, with the sentence to show, for whatever the yaml alone can tell; `check_signatures` does the rest once torch is there.
    """
    return run_config(compose(command, argv, config_dir))


def run_config(tree: Node) -> RunConfig:
    """RunConfig from a composed or stored tree; keys that are not a run's are left out."""
    return RunConfig(**{field.name: tree[field.name] for field in fields(RunConfig)})


def compose(command: str, argv: Sequence[str], config_dir: str | None = None) -> Node:
    """The checked, resolved tree of conf/COMMAND.yaml with overrides, as plain data."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    search = [Path(config_dir).resolve()] if config_dir else []
    for folder in search:
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir {config_dir}: there is no such folder. Name the folder that holds your model/, data/, experiment/ yaml."
            )
    parsed: list[Override] = []
    for word in argv:
        try:
            parsed += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise ConfigError(
                f"{word!r} cannot be read: {_first_line(error)}. Overrides look like key=value, for example optim.lr=0.01."
            ) from error
    _check_choices(command, parsed, search)
    chosen = [str(override.input_line) for override in parsed if _is_choice(override, search)]
    try:
        reference, choices = hydra_tree(command, chosen, search)
        if choices.get("experiment") is not None:  # a recipe may hold any key: what there is, the files beside it say
            plain = [f"{group}={choice}" for group, choice in choices.items() if group != "experiment" and choice is not None]
            reference = hydra_tree(command, plain, search)[0]
        _check_keys(command, parsed, reference, search)
        every = [str(override.input_line) for override in parsed]
        tree = reference if every == chosen and choices.get("experiment") is None else hydra_tree(command, every, search)[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the config cannot be composed: {_first_line(error)}.") from error
    if "name" in tree and tree["name"] is None:
        tree["name"] = choices.get("experiment") or f"{choices['data']}_{choices['model']}"
    tree = _conform(tree, reference, "")
    check_together([override.key_or_group for override in parsed], tree, choices)
    return tree


def hydra_tree(command: str, overrides: Sequence[str], search: Sequence[Path]) -> tuple[Node, dict[str, str]]:
    """(resolved tree, choice made in each group) from Hydra, unchecked."""
    if search:
        return _hydra_tree(command, tuple(overrides), tuple(search))
    return deepcopy(_shipped_tree(command, tuple(overrides)))


@lru_cache(maxsize=64)  # a fifth of a second each, and a sweep asks for the same ones again
def _shipped_tree(command: str, overrides: tuple[str, ...]) -> tuple[Node, dict[str, str]]:
    return _hydra_tree(command, overrides, ())


def _hydra_tree(command: str, overrides: tuple[str, ...], search: tuple[Path, ...]) -> tuple[Node, dict[str, str]]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    outer = GlobalHydra.instance().hydra  # a sweep composes its jobs inside its own Hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            paths = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in search)}]"] if search else []
            config = hydra_compose(command, [*overrides, *paths], return_hydra_config=True)
            named = groups(search)
            choices = {k: v for k, v in config.hydra.runtime.choices.items() if "/" not in k and k in named}
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            tree = OmegaConf.to_container(config, resolve=True)
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)
    assert isinstance(tree, dict)
    return typing.cast(Node, tree), choices


def by_size(size: Any, small: Any, large: Any) -> Any:
    """What ${by_size:...} in a yaml stands for: `small` for images under SMALL_IMAGE pixels, else `large`."""
    return small if isinstance(size, int) and size < SMALL_IMAGE else large  # what is no number is refused later, by its own name


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _is_choice(override: Any, search: Sequence[Path]) -> bool:
    return override.key_or_group in groups(search)


def _check_choices(command: str, parsed: Sequence[Any], search: Sequence[Path]) -> None:
    for override in parsed:
        group, option = override.key_or_group, override.value()
        if not _is_choice(override, search):
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
            if name not in options(group, search):
                raise ConfigError(
                    f"{group}={name}: there is no such {group}.{did_you_mean(name, options(group, search))} There are: {', '.join(options(group, search))}."
                )


def _check_keys(command: str, parsed: Sequence[Any], reference: Node, search: Sequence[Path]) -> None:
    known = list(_keys(reference))
    for override in parsed:
        key = override.key_or_group
        if (
            _is_choice(override, search)
            or key.startswith("hydra")
            or any(f"{key}.".startswith(f"{head}.") for head in _open_keys(reference))
        ):
            continue
        if key not in known:
            near = _near_key(key, known, groups(search))
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


def _conform(tree: Node, reference: Node, prefix: str) -> Node:
    """`tree` with the reference's number types, after each key, type and range was checked."""
    checked: Node = {}
    for key, value in tree.items():
        path = prefix + key
        if key not in reference:
            raise ConfigError(
                f"{path}={show(value)}: there is no key {path}.{did_you_mean(key, list(reference))}"
                f" Known here: {', '.join(k for k in reference if not k.startswith('_'))}."
            )
        checked[key] = conform_value(value, reference[key], path)
    return checked


def conform_value(value: Any, like: Any, path: str) -> Any:
    if isinstance(like, dict) and like:
        if not isinstance(value, dict):
            raise ConfigError(
                f"{path}={show(value)}: {path} is a group of keys. Type {path}.KEY=VALUE; keys: {', '.join(k for k in like if not k.startswith('_'))}."
            )
        return _conform(value, like, f"{path}.")
    key = path.rsplit(".", maxsplit=1)[-1]
    hint = typing.get_type_hints(RunConfig).get(key) if path.count(".") == 0 else None
    if hint in (str, str | None) and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # id=5
    if hint == dict[str, float] | None and isinstance(value, dict):
        value = {str(name): one for name, one in value.items()}  # class_weights={0: 2}
    if hint is not None and not matches(value, hint) and not (value is None and like is None):
        words = [str(word) for word in typing.get_args(hint)] if isinstance(value, str) else []
        near = did_you_mean(value, words) if words else ""
        raise ConfigError(f"{path}={show(value)}: {key} takes {describe(hint)}{near and '.'}{near or f', not {kind(value)}.'}")
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
            takes = "a list of numbers" if isinstance(value, list) and isinstance(like, list) else kind(like)
            raise ConfigError(
                f"{path}={show(value)}: {key} takes {takes}, not {kind(value) if takes == kind(like) else 'other values'}. The default is {show(like)}."
            )
    check_range(path, value, like)
    return value


def settings(cls: type[Settings], tree: Node) -> Settings:
    """The dataclass `cls` from the keys of a composed tree; ConfigError for a value that its annotation does not allow."""
    for key, hint in typing.get_type_hints(cls).items():
        if not matches(tree[key], hint):
            words = [str(word) for word in typing.get_args(hint)]
            near = did_you_mean(tree[key], words) if isinstance(tree[key], str) else ""
            raise ConfigError(f"{key}={show(tree[key])}: {key} takes {describe(hint)}.{near}")
    return cls(**tree)
