"""Files of plain data, .yaml and .json, that may be cut, empty or anything else. Imports no torch."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from imgrec.config.annotations import check_type
from imgrec.errors import ConfigError, DataError, first_line

MOST_VALUES, DEEPEST = 100_000, 32  # of a config: an alias in yaml, or a reference in a pickle, is a value each time


def read_mapping(file: Path, types: Mapping[str, Any], *, fix: str) -> dict[str, Any]:
    """The dictionary with keys of these types that imgrec wrote to a file, null for those that are missing.

    DataError, which ends with what to do, where that is not in it.
    """
    content = read_plain(file, fix=fix)
    try:
        check_type(file.name, content, dict)
        for key, kind in types.items():
            check_type(key, content.get(key), kind)
    except ConfigError as error:
        raise DataError(f"{file} was cut or changed: {error} {fix}") from error
    return {**dict.fromkeys(types), **content}


def read_plain(file: Path, *, fix: str) -> Any:
    """The content of a .yaml or .json file; DataError where it cannot be read, or a .yaml is larger than a config can be."""
    check_regular(file, fix)
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":  # has no aliases; the result.json of 1,000 classes has a million values
            return json.loads(text)
        content = _load_yaml(text)
        check_size(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else first_line(error)
        raise DataError(f"{file} cannot be read: {reason}. {fix}") from error
    except (OSError, ValueError, RecursionError, ConfigError) as error:  # ValueError: not JSON, not UTF-8, no date
        reason = (error.strerror if isinstance(error, OSError) else "") or first_line(error)
        raise DataError(f"{file} cannot be read: {'it is empty' if not file.stat().st_size else reason}. {fix}") from error
    return content


def check_regular(file: Path, fix: str) -> None:
    """DataError for a pipe, a socket or a device, of which one that is read may wait for ever."""
    if file.exists() and not file.is_file() and not file.is_dir():
        raise DataError(f"{file} cannot be read: it is no regular file. {fix}")


def _load_yaml(text: str) -> Any:
    """libyaml reads a run's config in 0.7 instead of 22 ms. What it refuses, such as an escaped surrogate, is left to PyYAML."""
    if yaml.__with_libyaml__:
        with suppress(yaml.YAMLError):
            return yaml.load(text, Loader=yaml.CSafeLoader)
    return yaml.safe_load(text)


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Plain data as yaml. libyaml writes a run's config in 0.7 instead of 6 ms; a name that is no UTF-8 is left to PyYAML."""
    if yaml.__with_libyaml__:
        with suppress(UnicodeEncodeError):
            return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
    return yaml.safe_dump(content, sort_keys=False)


def check_size(content: Any) -> None:
    """ConfigError where plain data has more values than a config, is nested deeper, or contains itself."""
    pending, count = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        count += 1
        if count + len(pending) + len(inner) > MOST_VALUES or depth > DEEPEST:
            raise ConfigError(f"more than {MOST_VALUES:,} values, or more than {DEEPEST} levels.")
        pending += [(each, depth + 1) for each in inner]
