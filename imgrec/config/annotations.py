"""Type annotations of keys: whether a value of plain data matches one, and its description in an error."""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of keys",
    type(None): "null",
}


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value of plain data matches an annotation. Integers match float, lists match tuples; other classes match anything."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty) or isinstance(hint, str | typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(matches_type(value, arg) for arg in args)
    if origin is Literal:
        return value in args and type(value) in {type(arg) for arg in args}
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, dict, list):
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        return (
            all(matches_type(v, args[0]) for v in value)
            if args[-1] is ...
            else len(value) == len(args) and all(map(matches_type, value, args))
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(matches_type(v, args[0]) for v in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    return False


def describe_type(hint: Any) -> str:
    """An annotation in words: 'an integer or full'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        *first, last = map(describe_type, args)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return ", ".join(map(str, args[:-1])) + (f" or {args[-1]}" if len(args) > 1 else str(args[0]))
    if origin is tuple and args[-1] is not ...:
        return f"a list of {len(args)} values"
    if origin in (list, tuple):
        return (
            f"a list of {describe_type(args[0]).removeprefix('an ').removeprefix('a ')}s" if args[0] in TYPE_NAMES else "a list"
        )
    return TYPE_NAMES.get(hint, "a group of keys" if origin is dict else getattr(hint, "__name__", str(hint)))


def type_of(value: Any) -> str:
    """The type of a value of plain data in words: 'an integer'."""
    return describe_type(type(value))


def format_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
