"""Settings given from Python, as the overrides that they are on the command line: words, dictionaries, keywords."""

import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imgrec.config.annotations import format_value
from imgrec.config.overrides import Override
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError

# "data=mnist", ["data=mnist", "epochs=3"], or {"data": "mnist", "optim.lr": 0.1, "model": {"depth": 20}}
Settings = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any] | None

FORMS = "Type data='mnist', epochs=3, or a list of texts: ['data=mnist', 'epochs=3']."
# Keys whose value is a dictionary; in others a dictionary holds the keys of a group.
DICTIONARIES = [key for key, hint in typing.get_type_hints(RunConfig).items() if dict[str, float] in typing.get_args(hint)]


def read_settings(settings: Settings, keywords: Mapping[str, Any]) -> list[str | Override]:
    """The words and overrides of settings and, after them, of keywords; ConfigError for what is neither plain data nor a path.

    A text is read as it is typed on a command line; other values are taken as they are.
    """
    if isinstance(settings, Mapping):
        return [*_overrides(settings), *_overrides(keywords)]
    words = [] if settings is None else [settings] if isinstance(settings, str | os.PathLike) else settings
    if not isinstance(words, Sequence):
        raise ConfigError(f"{words!r}: expected a list of texts, a dictionary or a RunConfig. {FORMS}")
    for word in words:
        if not isinstance(word, str | os.PathLike):
            raise ConfigError(f"{word!r}: expected a text, such as 'epochs=3'. {FORMS}")
    return [*(os.fspath(word) for word in words), *_overrides(keywords)]


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[Override]:
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigError(f"{key!r}: expected the name of a key. {FORMS}")
        name = prefix + key
        is_node = prefix and "_target_" in value if isinstance(value, Mapping) else True
        if is_node or not value or name in DICTIONARIES:
            plain = _plain(name, value)
            text = format_value(plain)
            given = None if isinstance(plain, str | None) else plain
            yield Override(f"{name}={text}", "", name, text, given)
        else:
            yield from _overrides(value, f"{name}.")


def _plain(name: str, value: Any) -> Any:
    """The value as plain data: NumPy's and torch's numbers and arrays become Python's, tuples lists, paths texts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(name, element) for element in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, inner) for key, inner in value.items()}
    raise ConfigError(
        f"{name}={type(value).__name__}: expected a number, a text, a list or a dictionary. "
        f"Write a yaml that names your code as _target_, and type {name.partition('.')[0]}='NAME', config_dir='FOLDER'."
    )
