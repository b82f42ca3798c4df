"""The text of `imgrec COMMAND --help`: config groups and keys, with the comments of the yaml. Imports no torch."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from imgrec.config.compose import compose_config
from imgrec.config.options import conf_dir, option_names

WIDTH = 120  # characters
KEY_WIDTH = 36  # up to the comment

# Shown, and composed by a test.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "model=resnet optim=adam",
        "data=imagefolder data.root=FOLDER augment=basic",
        "model=vgg data=mnist optim=nesterov optim.lr=0.02 epochs=20",
        "data=fake trainer=debug",
    ),
    "evaluate": (
        "ckpt=runs/digits_resnet/1",
        "ckpt=runs/digits_resnet/1 split=val",
        "ckpt=runs/digits_resnet/1 folder=FOLDER out=figures.json",
    ),
    "predict": (
        "ckpt=runs/digits_resnet/1 files=FOLDER",
        "ckpt=runs/digits_resnet/1 files=[a.png,b.png] out=answers.json top_k=5",
    ),
    "lr_find": ("model=vgg data=mnist", "optim=sgd lr_min=1e-4 lr_max=10"),
    "slurm": (
        "nodes=2 gpus_per_node=4 time=8h -- data=imagenet data.root=FOLDER",
        "gpus_per_node=0 tasks_per_node=4 dry_run=true -- model=vgg",
        "time=2h array=%4 -- -m optim.lr=0.1,0.03,0.01 seed=0,1",
    ),
}

KeyPath = tuple[str, ...]  # the parts of a key: ("finetune", "freeze_epochs")


def help_text(command: str, argv: Sequence[str] = (), config_dir: str | None = None) -> str:
    """Help of a command. The keys of options in `argv` (model=resnet) are listed too, with the values that they would get.

    Raises ConfigError for overrides that cannot be composed.
    """
    source = (conf_dir() / f"{command}.yaml").read_text()
    search = [Path(config_dir)] if config_dir else []
    overrides = [argument for argument in argv if "=" in argument]
    chosen = dict(override.split("=", 1) for override in overrides)
    usage = f"imgrec {command} key=value ...        the same as: python -m imgrec.{command} key=value ..."
    lines = [usage, "", *_header(source), ""]
    roots = [source, *((conf_dir() / f"{name}.yaml").read_text() for name in _parents(source))]  # lr_find has every key of train
    groups = {group: default for root in roots for group, default in _defaults(root).items()}
    if groups:
        example = f"{command} model=vgg --help"
        lines += [f"Config groups: GROUP=OPTION, *OPTION is the default. The keys of an option: imgrec {example}"]
        for group, default in groups.items():
            names = [f"*{name}" if name == chosen.get(group, default) else name for name in option_names(group, search)]
            lines += textwrap.wrap(f"  {group:<12}{'  '.join(names)}", WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
        lines += [""]
    tree = compose_config(command, overrides, config_dir) if overrides else None
    lines += ["Keys, with their values"]
    lines += [_line(tree, *key) for root in roots for key in documented(root) if key[0][0] not in groups]
    for group in groups:
        if group in chosen and (file := _file(group, chosen[group], search)) is not None:
            lines += ["", f"{group}={chosen[group]}", *_header(file.read_text())]
            lines += [_line(tree, *key) for key in option_keys(group, file)]
    lines += ["", "--config-dir FOLDER    your own yaml beside the shipped ones: FOLDER/model/mine.yaml is model=mine"]
    if command == "train":
        lines += ["-m, --multirun         a sweep: optim.lr=0.01,0.1 seed=0,1,2 runs every combination"]
        lines += ["-m --search            Optuna chooses the values: 'optim.lr=log(1e-4,1e-1)' 'model.depth=20,32' trials=30"]
    if command in EXAMPLES:
        lines += ["", "Examples", *(f"  imgrec {command} {example}" for example in EXAMPLES[command])]
    return "\n".join(lines)


def documented(source: str) -> list[tuple[KeyPath, str, str]]:
    """(path, value as written, comment) of each leaf of a yaml text; the comment stands on the line or on the lines above it."""
    lines = source.splitlines()
    root = yaml.compose(source)
    keys: list[tuple[KeyPath, str, str]] = []

    def walk(node: yaml.Node | None, path: KeyPath) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = str(key.value)
            if (name == "defaults" and not path) or name in ("_target_", "_partial_"):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                walk(value, (*path, name))
                continue
            end = value.end_mark if value.end_mark.line == key.end_mark.line else key.end_mark
            comment = lines[end.line][end.column :].partition("#")[2].strip() or _above(lines, end.line)
            written = source[value.start_mark.index : value.end_mark.index].strip() or "null"
            keys.append(((*path, name), written, comment))

    walk(root, ())
    return keys


def _above(lines: Sequence[str], line: int) -> str:
    """The comment lines directly above a line, joined."""
    block: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#") and "@package" not in lines[line - 1]:
        line -= 1
        block.insert(0, lines[line].strip().lstrip("# "))
    return " ".join(block)


def _header(source: str) -> list[str]:
    """The first block of comment lines without indentation."""
    block: list[str] = []
    for line in source.splitlines():
        if line.startswith("#") and "@package" not in line:
            block.append(line.lstrip("# "))
        elif block:
            break
    return block


def _defaults(source: str) -> dict[str, str | None]:
    """Group to default option of a root's defaults list, in its order."""
    listed: list[Any] = (yaml.safe_load(source) or {}).get("defaults", [])
    return {str(group): option for entry in listed if isinstance(entry, dict) for group, option in entry.items()}


def _parents(source: str) -> list[str]:
    """Other roots in the defaults list of a root."""
    listed: list[Any] = (yaml.safe_load(source) or {}).get("defaults", [])
    return [entry for entry in listed if isinstance(entry, str) and entry != "_self_"]


def _file(group: str, option: str, search: Sequence[Path]) -> Path | None:
    return next((file for root in (*search, conf_dir()) if (file := root / group / f"{option}.yaml").is_file()), None)


def option_keys(group: str, file: Path) -> Iterator[tuple[KeyPath, str, str]]:
    """Every key of an option, with those of its defaults list in the same folder; later files override earlier ones."""
    source = file.read_text()
    head: KeyPath = () if "@package _global_" in source.partition("\n")[0] else (group,)
    keys: dict[KeyPath, tuple[str, str]] = {}
    for entry in (yaml.safe_load(source) or {}).get("defaults", []):
        name = str(entry).partition("@")[0]
        if isinstance(entry, str) and entry != "_self_" and (file.parent / f"{name}.yaml").is_file():
            keys |= {path: (value, comment) for path, value, comment in option_keys(group, file.parent / f"{name}.yaml")}
    for path, value, comment in documented(source):
        keys[(*head, *path)] = (value, comment or keys.get((*head, *path), ("", ""))[1])
    return ((path, value, comment) for path, (value, comment) in keys.items())


def _value(tree: dict[str, Any] | None, path: KeyPath, written: str) -> str:
    """The composed value of a key, or its text in the yaml where nothing was composed."""
    node: Any = tree
    for name in path:
        if not isinstance(node, dict) or name not in node:
            return written
        node = node[name]
    return "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node).replace(", ", ",")


def _line(tree: dict[str, Any] | None, path: KeyPath, written: str, comment: str) -> str:
    start = f"  {'.'.join(path)}={_value(tree, path, written)}"
    if not comment and written.startswith("${") and written.endswith("}"):
        comment = f"as {written[2:-1]}"
    wrapped = textwrap.wrap(comment, WIDTH - KEY_WIDTH) or [""]
    first = f"{start:<{KEY_WIDTH}}{wrapped[0]}" if len(start) < KEY_WIDTH else f"{start}\n{' ' * KEY_WIDTH}{wrapped[0]}"
    return "\n".join([first.rstrip(), *(" " * KEY_WIDTH + more for more in wrapped[1:])])
