"""The value of an override: text as it is typed, or what Hydra's grammar makes of it."""

import os
import re
import shlex
import types
import typing
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from imgrec.config.overrides import Override
from imgrec.config.plain_data import DEEPEST
from imgrec.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?")


def parse_value(command: str, override: Override, hint: Any) -> Any:
    """The value of an override of a key with this annotation.

    Text is taken as it is typed, but for quotes around all of it (and for _target_); null is None. Other values follow Hydra's grammar, and what it
    cannot read is text, which the check of the type refuses. ConfigError for several values.
    """
    text = override.value
    if override.given is not None:
        return override.given
    if (is_text(hint) and not override.key.endswith("_")) or (hint is Any and os.path.lexists(os.path.expanduser(text))):
        return literal_text(text)
    if is_text(hint, or_list=True):
        is_list = text.startswith("[") and text.endswith("]") and not os.path.lexists(text)
        return list(map(literal_text, split_texts(text[1:-1]))) if is_list else literal_text(text)
    parsed = hydra_value(text)
    if parsed is None:
        if _depth(text) > DEEPEST:
            raise ConfigError(
                f"'{override.text[:40]}...': brackets in more than {DEEPEST} brackets. Type a list or a group of keys."
            )
        return _flow(text)
    if parsed.is_sweep_override():
        raise _several_values(command, override, hint)
    return parsed.value()


def is_text(hint: Any, *, or_list: bool = False) -> bool:
    """Whether the values of an annotation are texts, or null; with `or_list` also lists of texts."""
    arms = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    texts = [arm for arm in arms if arm is str or (or_list and arm == list[str]) or _is_literal_text(arm)]
    return bool(texts) and len(texts) == len([arm for arm in arms if arm is not type(None)])


def _is_literal_text(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal and all(isinstance(value, str) for value in typing.get_args(hint))


def literal_text(text: str) -> str | None:
    """A text as it is typed. Quotes around all of it are those of Hydra's grammar, unless a file has them in its name."""
    if text == "null":
        return None
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] and not os.path.lexists(text):
        parsed = hydra_value(text)
        return text if parsed is None or parsed.is_sweep_override() else str(parsed.value())
    return text


@lru_cache(maxsize=1024)  # each takes 0.3 ms, and most are the same in all jobs of a sweep
def hydra_value(text: str) -> Any:
    """Hydra's Override of KEY=text; None where its grammar has no such value."""
    from hydra.errors import HydraException

    if _depth(text) > DEEPEST:  # the parser and OmegaConf descend in recursion
        return None
    try:
        return _parser().parse_override(f"key={text}")
    except (HydraException, ValueError):  # ValueError: an integer of more digits than Python reads
        return None


@cache
def _parser() -> "OverridesParser":
    """A new one takes longer than to read a value with it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _depth(text: str) -> int:
    """The most brackets that are open at a letter of the text."""
    return max(accumulate((letter in "[{(") - (letter in "]})") for letter in text), default=0)


def split_texts(text: str) -> list[str]:
    """The texts of A,B as they are typed; quotes keep a comma in one."""
    return [part.strip() for part in re.findall(r"\s*(?:'[^']*'|\"[^\"]*\")\s*(?=,|$)|[^,]+", text)]


def _flow(text: str) -> Any:
    """A list or a group of keys whose names Hydra's grammar does not accept, such as {größe: 2}, as YAML; other text as it is."""
    import yaml

    try:
        return yaml.safe_load(text) if text[:1] in ("[", "{") else text
    except (yaml.YAMLError, ValueError):
        return text


def _several_values(command: str, override: Override, hint: Any) -> ConfigError:
    text, key = override.text, override.key
    if is_decimal_comma(override.value, hint):
        return decimal_comma(key, override.value)
    sweep = f"imgrec train -m {shlex.quote(text)} for a job of each, or {key}=[...] for a list"
    advice = sweep if command == "train" else f"{key}=VALUE"
    return ConfigError(f"{text!r} has several values. Type {advice}.")


def is_decimal_comma(value: str, hint: Any) -> bool:
    """Whether a value of a key that takes numbers, not only integers, looks like 0,01."""
    return DECIMAL_COMMA.fullmatch(value) is not None and float in (hint, *typing.get_args(hint))


def decimal_comma(key: str, value: str) -> ConfigError:
    """The error for 0,01 where one number is expected."""
    point = value.replace(",", ".")
    return ConfigError(
        f"{key}={value}: a decimal comma, or several values. Type {key}={point}; for a job of each, -m {key}={value}."
    )
