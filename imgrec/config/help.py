"""The text of `imgrec COMMAND --help`: config groups and keys, with the comments of the yaml. Imports no torch."""

import textwrap
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import dropwhile, takewhile
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from imgrec.config.annotations import format_value
from imgrec.config.compose import compose_config, read_overrides
from imgrec.config.options import conf_dir, conf_dirs, option_names
from imgrec.config.overrides import POSITIONAL
from imgrec.errors import ConfigError, shorten_words

WIDTH = 120  # characters
KEY_WIDTH = 36  # up to the comment

# Shown, and composed by a test.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "model=resnet optim=adam",
        "FOLDER augment=basic weights=DEFAULT",
        "model=vgg data=mnist optim=nesterov optim.lr=0.02 epochs=20",
        "data=fake trainer=debug",
    ),
    "extend": (
        "runs/digits_resnet/1 FOLDER",
        "runs/digits_resnet/1 FOLDER frozen=false optim.lr=0.001",
    ),
    "evaluate": (
        "runs/digits_resnet/1",
        "runs/digits_resnet/1 split=val",
        "runs/digits_resnet/1 folder=FOLDER out=figures.json",
    ),
    "export": (
        "runs/digits_resnet/1",
        "runs/digits_resnet/1 coverage=0.95 out=digits.onnx",
        "runs/digits_resnet/1 int8=true",
        "runs/digits_resnet/1 format=torch_export out=digits.pt2",
    ),
    "verify": ("model.onnx",),
    "compare": (
        "runs/digits_resnet/1 runs/digits_resnet/2",
        "runs/digits_resnet/*/ baseline=runs/digits_resnet/3 out=resnets.json",
    ),
    "report": ("runs/digits_resnet/1", "runs/digits_resnet/*/"),
    "predict": (
        "runs/digits_resnet/1 FOLDER",
        "runs/digits_resnet/1 a.png b.png out=predictions.json top_k=5",
    ),
    "serve": ("runs/digits_resnet/1", "runs/digits_resnet/1 port=9000 coverage=0.95 token_file=token"),
    "explain": ("runs/digits_resnet/1 FOLDER", "runs/digits_resnet/1 a.png b.png neighbours=3 method=gradients"),
    "tune": (
        "model=resnet data=digits trials=20",
        "FOLDER augment=basic optim=adamw optim.weight_decay=0.05",
    ),
    "lr_find": ("model=vgg data=mnist", "optim=sgd lr_min=1e-4 lr_max=10"),
    "benchmark": ("FOLDER model=resnet", "data=fashion_mnist model=lenet seconds=20"),
    "pack": (
        "FOLDER out=packed",
        "data=table data.file=train.csv data.root=FOLDER out=packed format=keep",
        "verify=packed",
    ),
    "check": (
        "FOLDER",
        "FOLDER write=skip out=reports/check.json",
        "data=table data.file=train.csv data.root=FOLDER",
        "ckpt=runs/digits_resnet/1 suspects=true",
    ),
    "slurm": (
        "nodes=2 gpus_per_node=4 time=8h -- data=imagenet data.root=FOLDER",
        "gpus_per_node=0 tasks_per_node=4 dry_run=true -- model=vgg",
        "time=2h array=%4 -- -m optim.lr=0.1,0.03,0.01 seed=0,1",
    ),
}

PATHS = {
    "data.root": "FOLDER",
    "ckpt": "RUN",
    "files": "FILES...",
    "runs": "RUNS...",
    "file": "FILE",
    "images": "IMAGES...",
}  # how a path without its key is shown
REFUSED_GROUPS = {"extend": ("model", "experiment")}  # config groups of a training that a command does not take
OPTION_EXAMPLES = {"model": "model=vgg", "optim": "optim=sgd", "data": "data=table"}
KeyPath = tuple[str, ...]  # the parts of a key: ("finetune", "freeze_epochs")


def help_text(command: str, argv: Sequence[str] = (), config_dir: str | None = None) -> str:
    """Help of a command. The keys of options in `argv` (model=resnet) are listed too, with the values that they would get.

    A word that is no key=value is named at the end. Raises ConfigError for overrides that cannot be composed.
    """
    source = (conf_dir() / f"{command}.yaml").read_text()
    words, refused = _readable(command, [word for word in argv if not word.startswith("-")], config_dir)
    chosen = {override.key: override.value for override in read_overrides(command, words, config_dir)}
    paths = "".join(f"[{PATHS[key]}] " for key in POSITIONAL.get(command, ()))
    usage = f"imgrec {command} {paths}key=value ...        the same as: python -m imgrec.{command} {paths}key=value ..."
    lines = [usage, "", *_header(source), ""]
    parents = [entry for entry in _defaults(source) if isinstance(entry, str) and entry != "_self_"]
    roots = [source, *((conf_dir() / f"{name}.yaml").read_text() for name in parents)]  # lr_find has every key of train
    entries = [entry for root in roots for entry in _defaults(root) if isinstance(entry, dict)]
    groups: dict[str, str | None] = {}
    for entry in entries:
        for group, option in entry.items():
            if group not in REFUSED_GROUPS.get(command, ()):
                groups.setdefault(group.removeprefix("override "), option)  # extend overrides one of train
    if groups:
        example = f"{command} {next(example for group, example in OPTION_EXAMPLES.items() if group in groups)} --help"
        lines += [f"Config groups: GROUP=OPTION, *OPTION is the default. The keys of an option: imgrec {example}"]
        for group, default in groups.items():
            names = [f"*{name}" if name == chosen.get(group, default) else name for name in option_names(group, config_dir)]
            lines += textwrap.wrap(f"  {group:<12}{'  '.join(names)}", WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
        lines += [""]
    tree = compose_config(command, words, config_dir) if words else None
    lines += ["Keys, with their values"]
    keys: dict[KeyPath, tuple[KeyPath, str, str]] = {}
    for key in (key for root in roots for key in documented(root) if root is source or key[0][0] not in groups):
        keys.setdefault(key[0], key)
    lines += [_line(tree, *key) for key in keys.values()]
    for group in groups:
        files = [root / group / f"{chosen[group]}.yaml" for root in conf_dirs(config_dir) if group in chosen]
        if file := next(filter(Path.is_file, files), None):
            lines += ["", f"{group}={chosen[group]}", *_header(file.read_text())]
            lines += [_line(tree, *key) for key in option_keys(group, file)]
    lines += ["", "--config-dir FOLDER    your own yaml beside the shipped ones: FOLDER/model/mine.yaml is model=mine"]
    if command == "tune":
        lines += ["'optim.lr=log(1e-3,1e-1)'   a range of yours, in quotes; also uniform(0,1), int(1,5), and A,B for one of them"]
    if command == "train":
        lines += ["-m, --multirun         a sweep: optim.lr=0.01,0.1 seed=0,1,2 runs every combination"]
        lines += ["-m --search            Optuna chooses the values: 'optim.lr=log(1e-4,1e-1)' 'model.depth=20,32' trials=30"]
        lines += [
            "folds=5                cross-validation: five runs, each validated on a fifth of the training images, and one table"
        ]
    if command in EXAMPLES:
        lines += ["", "Examples", *(f"  imgrec {command} {example}" for example in EXAMPLES[command])]
    return "\n".join([*lines, *([""] if refused else []), *refused])


def _readable(command: str, words: Sequence[str], config_dir: str | None) -> tuple[list[str], list[str]]:
    """Those of the words that are key=value or a path, and what is wrong with each of the others."""
    readable, refused = [], []
    for word in words:
        try:
            read_overrides(command, [word], config_dir)
            readable.append(word)
        except ConfigError as error:
            refused.append(shorten_words(str(error)))
    return readable, refused


def documented(source: str) -> list[tuple[KeyPath, str, str]]:
    """(path, value as written, comment) of each leaf of a yaml text; the comment stands on the line or on the lines above it."""
    lines = source.splitlines()

    def walk(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str, str]]:
        for key, value in node.value:
            name = str(key.value)
            if (name == "defaults" and not path) or name in ("_target_", "_partial_"):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, (*path, name))
                continue
            end = value.end_mark if value.end_mark.line == key.end_mark.line else key.end_mark
            comment = lines[end.line][end.column :].partition("#")[2].strip() or _above(lines, end.line)
            yield (*path, name), source[value.start_mark.index : value.end_mark.index].strip() or "null", comment

    root = yaml.compose(source)
    return list(walk(root, ())) if isinstance(root, yaml.MappingNode) else []


def _is_comment(line: str) -> bool:
    return line.startswith("#") and "@package" not in line


def _above(lines: Sequence[str], line: int) -> str:
    """The comment lines directly above a line, joined."""
    block = list(takewhile(_is_comment, map(str.lstrip, reversed(lines[:line]))))
    return " ".join(text.lstrip("# ").rstrip() for text in reversed(block))


def _header(source: str) -> list[str]:
    """The first block of comment lines without indentation."""
    block = takewhile(_is_comment, dropwhile(lambda line: not _is_comment(line), source.splitlines()))
    return [line.lstrip("# ") for line in block]


def _defaults(source: str) -> list[Any]:
    """The defaults list of a yaml text."""
    return list((yaml.safe_load(source) or {}).get("defaults", []))


def option_keys(group: str, file: Path) -> Iterator[tuple[KeyPath, str, str]]:
    """Every key of an option, with those of its defaults list in the same folder; later files override earlier ones."""
    source = file.read_text()
    head: KeyPath = () if "@package _global_" in source.partition("\n")[0] else (group,)
    keys: dict[KeyPath, tuple[str, str]] = {}
    for entry in _defaults(source):
        name = str(entry).partition("@")[0]
        if isinstance(entry, str) and entry != "_self_" and (file.parent / f"{name}.yaml").is_file():
            keys |= {path: (value, comment) for path, value, comment in option_keys(group, file.parent / f"{name}.yaml")}
    for path, value, comment in documented(source):
        keys[(*head, *path)] = (value, comment or keys.get((*head, *path), ("", ""))[1])
    return ((path, value, comment) for path, (value, comment) in keys.items())


def _line(tree: Any, path: KeyPath, written: str, comment: str) -> str:
    """A key with its value in the composed tree, or as written in the yaml where nothing was composed."""
    try:
        value = format_value(reduce(getitem, path, tree))
    except (KeyError, TypeError):
        value = written
    start = f"  {'.'.join(path)}={value}"
    if not comment and written.startswith("${") and written.endswith("}"):
        comment = f"as {written[2:-1]}"
    wrapped = textwrap.wrap(comment, WIDTH - KEY_WIDTH) or [""]
    first = f"{start:<{KEY_WIDTH}}{wrapped[0]}" if len(start) < KEY_WIDTH else f"{start}\n{' ' * KEY_WIDTH}{wrapped[0]}"
    return "\n".join([first.rstrip(), *(" " * KEY_WIDTH + more for more in wrapped[1:])])
