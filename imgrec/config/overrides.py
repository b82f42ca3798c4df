"""The words of a command line: key=value as it is typed, paths that stand for it, and what to type instead of another word."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imgrec.config.checks import nearest_key
from imgrec.config.options import group_names, option_names
from imgrec.errors import ConfigError, nearest
from imgrec.files import TABLE_EXTENSIONS, nearest_path
from imgrec.paths import EXPORTED

OVERRIDE = re.compile(r"(\+{0,2}|~)([^\W\d][\w.@:$-]*)=(.*)", re.DOTALL)
DELETION = re.compile(r"(~)([^\W\d][\w.]*)()")  # of a key or a group, which is refused in its own words
SEARCH = "--search"
FLAGS = ("-m", "--multirun", SEARCH)  # of sweeps
# What words without "=" mean, in this order.
POSITIONAL = {
    "train": ("data.root",),
    "tune": ("data.root",),
    "lr_find": ("data.root",),
    "benchmark": ("data.root",),
    "pack": ("data.root",),
    "check": ("data.root",),
    "evaluate": ("ckpt",),
    "extend": ("ckpt", "data.root"),
    "compare": ("runs",),
    "report": ("runs",),
    "soup": ("runs",),
    "predict": ("ckpt", "files"),
    "serve": ("ckpt",),
    "export": ("ckpt",),
    "verify": ("file",),
    "explain": ("ckpt", "images"),
    "models": ("filter",),
}
SECOND_PATH = {"evaluate": "folder", "export": "out", "pack": "out"}  # what a path too many may have been meant as
Defaults = Mapping[str, Any]  # dotted name to default


@dataclass(frozen=True)
class Override:
    """KEY=VALUE. `text` is what was typed, for messages; `mark` is what stands before the key: nothing, +, ++ or ~."""

    text: str
    mark: str
    key: str
    value: str
    given: Any = None  # instead of `value`: what was not typed as one text: several paths for one key, values of Python


IMAGEFOLDER = Override("data=imagefolder", "", "data", "imagefolder")


def read_words(
    command: str, words: Sequence[str | Override], keys: Callable[[], Defaults], config_dir: str | None = None
) -> list[Override]:
    """The overrides of a command line, a path without a key being that of POSITIONAL. ConfigError for a word that is neither.

    `keys`: of the command with its default options; called where a word is no override, as composing them takes a while.
    """
    overrides: list[Override] = []
    paths: list[str] = []
    for given in words:
        word = given.text if isinstance(given, Override) else given
        if word in FLAGS:
            continue
        if "\0" in word:  # from Python: no path and no name can hold it
            raise ConfigError(f"{word!r}: the character \\0 is not allowed. Remove it.")
        if isinstance(given, Override):
            overrides += _folder_as_data(given, config_dir)
        elif match := _match(word, keys):
            overrides += _folder_as_data(Override(word, match[1], match[2], match[3]), config_dir)
        elif _is_path(command, word, keys):
            paths.append(word)
        else:
            raise _unreadable(
                command, [given.text if isinstance(given, Override) else given for given in words], keys, config_dir
            )
    return overrides + _positional(command, paths, {override.key for override in overrides})


def _match(word: str, keys: Callable[[], Defaults]) -> re.Match[str] | None:
    """The mark, key and value of an override; None for a folder that only looks like one: a=b, ~home."""
    match = OVERRIDE.fullmatch(word) or DELETION.fullmatch(word)
    return None if match and os.path.isdir(os.path.expanduser(word)) and match[2] not in keys() else match


def _is_path(command: str, word: str, keys: Callable[[], Defaults]) -> bool:
    """Whether a word without "=" is a path of the command: a folder of images for a training, any path else, but for a key's name."""
    path = os.path.expanduser(word)
    if word.startswith("-") or command not in POSITIONAL:
        return False
    if POSITIONAL[command] == ("data.root",):
        return os.path.isdir(path)
    return os.path.lexists(path) or word not in keys()


def _positional(command: str, paths: list[str], given: set[str]) -> list[Override]:
    """The overrides that `paths` stand for. The last key of `predict` and `explain`, and that of `compare`, `report` and `soup`, takes any number."""
    if not paths:
        return []
    keys = [key for key in POSITIONAL[command] if key not in given]
    values = [Override(f"{key}={path}", "", key, path) for key, path in zip(keys, paths, strict=False)]
    if keys[-1:] in (["files"], ["images"], ["runs"]) and len(paths) > len(keys):
        values[-1] = replace(values[-1], given=paths[len(keys) - 1 :])
    elif len(paths) > len(keys):
        more = ""
        if (key := SECOND_PATH.get(command)) is not None and key not in given:
            words = [f"{key}={paths[len(keys)]}"]
            if command == "export":
                words += [f"format={form}" for form, ending in EXPORTED.items() if paths[len(keys)].endswith(ending)]
            more = f", or type {shlex.join(words)}"
        takes = "one path" if len(POSITIONAL[command]) == 1 else "two paths"
        raise ConfigError(
            f"{paths[len(keys)]!r}: {command} takes {takes} without a key, {' and '.join(POSITIONAL[command])}, and no more. "
            f"Remove it{more}."
        )
    if keys == ["data.root"] and command != "extend" and "data" not in given:
        return [IMAGEFOLDER, *values]
    return values


def _folder_as_data(override: Override, config_dir: str | None) -> list[Override]:
    """data=FOLDER is data=imagefolder data.root=FOLDER, where no option has that name; of a sweep all values are folders."""
    names = option_names("data", config_dir)
    folders = [override.value] if os.path.isdir(os.path.expanduser(override.value)) else override.value.split(",")
    if override.key != "data" or any(name in names or not os.path.isdir(os.path.expanduser(name)) for name in folders):
        return [override]
    return [IMAGEFOLDER, Override(f"data.root={override.value}", "", "data.root", override.value)]


def _unreadable(command: str, words: Sequence[str], keys: Callable[[], Defaults], config_dir: str | None) -> ConfigError:
    """The error for words such as --epochs 5, with the whole command as it has to be typed."""
    known, left = keys(), list(words)
    takes_folder = POSITIONAL.get(command) == ("data.root",)
    wrong: list[str] = []
    only_folders = True  # whether each of them is one that is typed wrong
    typed = ["imgrec", command, *(["--config-dir", config_dir] if config_dir else [])]
    while left:
        word = left.pop(0)
        if _match(word, keys) or word in FLAGS or _is_path(command, word, keys):
            typed.append(word)
            continue
        if takes_folder and word.endswith(TABLE_EXTENSIONS) and os.path.isfile(word):
            wrong.append(word)
            only_folders = False
            typed += ["data=table", f"data.file={word}"]
            continue
        name, equals, value = word.lstrip("-").partition("=")
        rest: list[str] = [] if equals else _value_words(left)
        del left[: len(rest)]
        wrong.append(" ".join([word, *rest]))
        near = None if rest else _near_word(word, known, config_dir, folder=takes_folder)
        if (meant := near or _meant(name, value or "".join(rest[-1:]), word, known, config_dir)) is None:
            folder = f", or imgrec {command} FOLDER with images" if takes_folder else ""
            return ConfigError(
                f"{wrong[-1]!r}: there is no such key, option or folder. Type key=value, such as {_example(known)}{folder}; "
                f"`imgrec {command} --help` lists the keys."
            )
        typed.append(meant)
        only_folders = only_folders and near is not None and os.path.isdir(near)
    reason = "there is no such folder" if only_folders else "expected key=value"
    return ConfigError(f"{' '.join(wrong)!r}: {reason}. Type {shlex.join(typed)}")


def _near_word(word: str, known: Defaults, config_dir: str | None, *, folder: bool) -> str | None:
    """What to type for a word that is most like an option or a folder here: resnett -> model=resnet. None where a key is more like it, or nothing is."""
    if "=" in word or word.startswith("-"):
        return None
    meant: dict[str, str | None] = {}
    if folder and (path := nearest_path(os.path.expanduser(word), folder=True)) is not None:
        meant[path] = path
    for group in reversed(group_names(config_dir) if "model" in known else []):  # of a training
        meant |= {name: f"{group}={name}" for name in option_names(group, config_dir)}
    meant |= {key.rpartition(".")[2]: None for key in known}
    found = nearest(word, list(meant))
    return None if found is None else meant[found]


def _value_words(left: Sequence[str]) -> list[str]:
    """The next words where they are the value of the word before them: 5, or = and 5."""
    count = 2 if left[:1] == ["="] else 1
    value = left[count - 1 : count]
    return list(left[:count]) if value and not OVERRIDE.fullmatch(value[0]) and not re.match(r"-+[^\W\d]", value[0]) else []


def _meant(name: str, value: str, word: str, known: Defaults, config_dir: str | None) -> str | None:
    """The override that a word with its value means: lr, 0.1 -> optim.lr=0.1; resnet -> model=resnet; None where no key is like it."""
    groups = group_names(config_dir) if "model" in known else []  # the keys of a training
    name = name.rstrip(":").replace("-", "_")
    if not value and (group := next((group for group in groups if name in option_names(group, config_dir)), None)):
        return f"{group}={name}"
    key = name if name in known or name in groups else nearest_key(name, known, groups)
    if key is None:
        return nearest(word, (*FLAGS, "--help")) if word.startswith("-") or name == "help" else None
    return f"{key}={value or ('true' if isinstance(known.get(key), bool) else 'VALUE')}"


def _example(known: Defaults) -> str:
    return next(
        (f"{key}={value}" for key, value in known.items() if isinstance(value, int) and not isinstance(value, bool)), "out=FILE"
    )
