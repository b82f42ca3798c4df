"""Type annotations of keys: whether a value of plain data matches one, and the error where it does not."""

import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

from imgrec.errors import ConfigError, did_you_mean, first_line

LONGEST_SHOWN = 200  # letters of a value that does not match
MOST_DIGITS = 18  # of an integer that is read from a text: it fits into 64 bits; from 4,301 on int() raises an error of its own
TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    int | float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of keys",
    type(None): "null",
}


def check_type(path: str, value: Any, hint: Any, default: Any = None) -> None:
    """ConfigError for a value of the key `path` that does not match its annotation."""
    if not matches_type(value, hint):
        near = did_you_mean(value, list(map(str, typing.get_args(hint)))) if isinstance(value, str) else ""
        known = f" The default is {format_value(default)}." if default is not None and not near else ""
        shown = format_value(value)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        raise ConfigError(f"{path}={shown}: expected {describe_type(hint)}.{near}{known}")


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value of plain data matches an annotation. Integers match float, lists match tuples; no value matches another class."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty) or isinstance(hint, str | typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(matches_type(value, arg) for arg in args)
    if origin is Literal:
        return value in args and type(value) in {type(arg) for arg in args}
    if hint in (int, float):
        return is_number(value) and isinstance(value, (int, hint))
    if hint in (bool, str, dict, list, type(None)):
        return isinstance(value, hint)
    if origin is tuple and args[-1] is not ...:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(matches_type, value, args))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(matches_type(v, args[0]) for v in value)
    return isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Mapping)


def read_pattern(path: str, value: str) -> re.Pattern[str]:
    """The regular expression that a key holds; ConfigError where it is none."""
    try:
        return re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{path}={value}: no regular expression: {first_line(error)}. Set {path}='^[a-z]+', say, with the quotes for the shell."
        ) from error


def describe_type(hint: Any) -> str:
    """An annotation in words: 'an integer or full'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in TYPE_NAMES:
        return TYPE_NAMES[hint]
    if origin in (typing.Union, types.UnionType, Literal):
        *first, last = (
            word
            for arg in ((hint,) if origin is Literal else args)
            for word in (map(str, typing.get_args(arg)) if typing.get_origin(arg) is Literal else (describe_type(arg),))
        )
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple and args[-1] is not ...:
        return f"a list of {len(args)} values"
    if origin in (list, tuple):
        if typing.get_origin(args[0]) is Literal:
            return f"a list of {describe_type(args[0])}"
        noun = TYPE_NAMES.get(args[0], "").removeprefix("an ").removeprefix("a ")
        return f"a list of {noun}s" if noun else TYPE_NAMES[list]
    return TYPE_NAMES[dict] if origin is dict or is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def whole_number(text: str) -> int | None:
    """The integer, 0 or more, that a text is; None where it is none, or far too large."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def is_number(value: Any) -> bool:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, int) and value.bit_length() > 14_000:  # str() takes no more than 4,300 digits
        return hex(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
