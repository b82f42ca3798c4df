"""What is wrong with the images of a data set: python -m imgrec.check FOLDER"""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from imgrec.analysis.image_faults import STATE_KINDS, FileState
from imgrec.config.compose import compose_config, read_overrides
from imgrec.config.instantiate import build, check_signature
from imgrec.config.schema import OWN_TEXTS, DataConfig, MovedData, Node, Split, dotted_types, parse_settings
from imgrec.config.start_checks import check_data, check_moved
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, ExitCode, plural
from imgrec.files import as_utf8, atomic_output, atomic_write
from imgrec.inference.prediction_table import write_table
from imgrec.inference.stored_predictions import find_test_table, is_folds_folder, read_predictions
from imgrec.paths import find_checkpoint
from imgrec.scan.kept_findings import KeptFindings, findings_file, keep_findings, read_findings
from imgrec.scan.output_files import Files, checked_outputs
from imgrec.scan.terminal_output import print_findings
from imgrec.terminal import Terminal, percent, percents

if TYPE_CHECKING:
    from imgrec.data.batch import Indices
    from imgrec.data.file_index import ImageNames
    from imgrec.data.folder import ImageFiles
    from imgrec.data.image_data import ImageData
    from imgrec.inference.suspects import Suspects

UNCHANGED = "none has changed since the last check"


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """The keys of conf/check.yaml."""

    data: Node
    out: str
    write: Literal["skip", "splits"] | None
    ckpt: str | None
    suspects: bool
    num_workers: int | Literal["auto"]
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Decode all files, print what was found, write the files; returns ExitCode.FAULTS where there are faults."""
    types = dotted_types(CheckConfig) | {f"data.{key}": str | None for key in OWN_TEXTS}
    config = parse_settings(CheckConfig, compose_config("check", argv, config_dir, types=types))
    if config.suspects:
        if config.ckpt is None:
            raise ConfigError("suspects=true needs a run, whose data is checked. Set ckpt=runs/NAME/ID.")
        return _check_run(config, config.ckpt, _moved(argv, config_dir))
    data = DataConfig.from_node(config.data)
    check_data(data)
    if config.write == "skip" and "skip_list" not in data.own:
        raise ConfigError("write=skip: only data=imagefolder reads a skip list. Remove write=skip.")
    table = None if config.ckpt is None else find_test_table(config.ckpt)
    root = data.own.get("root")
    name = root if root is not None else os.path.dirname(data.own.get("file", "")) or "."
    files = checked_outputs(Path(config.out), name, root, config.write, overwrite=config.overwrite)
    if config.write is not None or table is not None:
        return _check_files(config, _build(config.data), files, table)
    terminal, start = Terminal(), time.perf_counter()
    with terminal.progress_shown():
        files = files._replace(kept=findings_file(config.data))
    if files.kept is not None and (kept := read_findings(files.kept)) is not None:
        terminal.say(f"{data.own['root']}: {kept.summary}; {UNCHANGED}, {time.perf_counter() - start:,.1f} s")
        return _say_again(kept, files, terminal)
    return _check_files(config, _build(config.data), files, table)


def _say_again(kept: KeptFindings, files: Files, terminal: Terminal) -> int:
    findings = kept.listed()
    print_findings(findings, terminal)
    terminal.say()
    _write_files(files, kept.content, kept.page, terminal)
    return ExitCode.FAULTS if any(finding.kind.is_fault for finding in findings) else ExitCode.OK


def _moved(argv: Sequence[str], config_dir: str | None) -> Node:
    """The keys of the run's data that the command line changes: where it is now; ConfigError for others."""
    changes: Node = {}
    for override in read_overrides("check", argv, config_dir):
        if override.key in ("data.root", "data.file"):
            changes[override.key.removeprefix("data.")] = override.value
        elif override.key.startswith("data") and (override.key, override.value) != ("data", "imagefolder"):
            raise ConfigError(
                f"{override.text} has no effect: suspects=true takes the data of the run. Remove it; data.root=FOLDER says where it is now."
            )
    check_moved(MovedData(changes.get("root"), changes.get("file")))
    return changes


def _check_run(config: CheckConfig, ckpt: str, changes: Node) -> int:
    """The labels of a run's data, and where that is image files all of `_check_files`."""
    file = find_checkpoint(Path(ckpt) / "1" if (folds := is_folds_folder(ckpt)) else ckpt)
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.evaluation import stored_data, whole_data
    from imgrec.inference.held_out import describe_missing, folds_held_out, root_of, run_held_out
    from imgrec.inference.suspects import Suspects, write_suspects

    checkpoint = load_checkpoint(file)
    data = whole_data(checkpoint, changes) if folds else stored_data(checkpoint, changes)
    config = replace(config, data=checkpoint.run.data.to_node() | changes)
    terminal, root = Terminal(), root_of(data)
    name = root if _has_files(data) else type(data).__name__
    files = checked_outputs(Path(config.out), name, config.data.get("root"), config.write, overwrite=config.overwrite)
    with terminal.progress_shown():
        parts = folds_held_out(Path(ckpt), checkpoint, data) if folds else run_held_out(checkpoint, data, changes)
    suspects = Suspects(parts, data.classes, root, trained_on=0 if folds else int(data.counts("train").sum()))
    if missing := describe_missing(parts, root):
        terminal.say(missing, "yellow")
    if _has_files(data):
        is_here = not changes and not folds and any(part.split == "test" for part in parts)
        return _check_files(config, data, files, find_test_table(ckpt) if is_here else None, suspects)
    write_suspects(suspects, name, files.out, files.page, terminal)
    return ExitCode.OK


def _build(node: Node) -> "ImageData":
    from imgrec.data.image_data import ImageData

    check_signature("data", node)
    data = build("data", node, ImageData)
    if not _has_files(data):
        raise ConfigError(
            f"data: {type(data).__name__} has no folder of image files. Set data=imagefolder data.root=FOLDER, or data=table; "
            "for shards type imgrec pack verify=DIR, for labels ckpt=RUN suspects=true."
        )
    return data


def _has_files(data: "ImageData") -> bool:
    """Whether its images are files below one folder; those of an extended run lie in two, each of which has a check of its own."""
    from imgrec.data.datasets import ImageFolder
    from imgrec.data.extended import ExtendedFolder
    from imgrec.data.table import ImageTable

    return isinstance(data, ImageFolder | ImageTable) and not isinstance(data, ExtendedFolder)


def _check_files(
    config: CheckConfig, data: "ImageData", files: Files, table: Path | None, suspects: "Suspects | None" = None
) -> int:
    """All that can be found in image files, and the suspects that were found before."""
    from imgrec.analysis.name_groups import groups_across_splits
    from imgrec.data.loader import worker_count
    from imgrec.inference.held_out import root_of
    from imgrec.scan.check_output import findings_content, findings_page
    from imgrec.scan.copy_faults import LEAK, describe_copies, describe_named_alike, find_near_copies, groups_to_unite
    from imgrec.scan.data_faults import find_faults, names_to_leave_out
    from imgrec.scan.file_scan import file_splits, scan_files
    from imgrec.scan.known_faults import remember_faults
    from imgrec.scan.split_table import split_table

    terminal, start, root = Terminal(), time.perf_counter(), root_of(data)
    workers = worker_count(config.num_workers, in_memory=False, processes_here=1)
    with terminal.progress_shown():
        splits = file_splits(data)
        scan = scan_files([*splits.values()], root, num_workers=workers)
    counts = {split: data.counts(split) for split in splits}
    labels = np.concatenate([images.labels for images in splits.values()])
    numbers = np.repeat(np.arange(len(splits)), [len(images) for images in splits.values()])  # 0 for train
    near, named_alike = find_near_copies(scan, labels, numbers), groups_across_splits(scan.names, labels, numbers)
    findings = [
        *find_faults(scan, splits, counts, data.classes, data.preprocessing()["image_size"]),
        *describe_copies(scan, labels, numbers, near),
        *describe_named_alike(scan, numbers, named_alike),
    ]
    findings.sort(key=lambda finding: not finding.kind.is_fault)
    known = remember_faults(data, findings)
    also = [suspects] if suspects is not None and suspects.count else []
    how = f"{scan.decoded:,} decoded" if scan.decoded else UNCHANGED
    sizes = {split: len(images) for split, images in splits.items()}
    summary = (
        f"{', '.join(f'{split} {size:,}' for split, size in sizes.items())} images of {plural(len(data.classes), 'class', 'es')}"
    )
    terminal.say(f"{root}: {summary}; {how}, {time.perf_counter() - start:,.1f} s")
    print_findings([*findings, *also], terminal)
    terminal.say()
    if suspects is not None:
        terminal.say(suspects.looked_at())
    content = findings_content(os.path.abspath(root), sizes, scan, findings, [] if suspects is None else [suspects.content()])
    if table is not None:
        leaked = next((finding.rows for finding in findings if finding.kind == LEAK), numbers[:0])
        content["leak_worth"] = _say_worth(table, splits, leaked, root, terminal)
    text, sections = json.dumps(content, indent=1), [(each.kind, each.count, each.examples()) for each in also]
    page = findings_page(root, summary, splits, findings, sections)
    _write_files(files, text, page, terminal)
    lasting = not any(finding.kind == STATE_KINDS[FileState.NOT_OPENED] for finding in findings)
    if files.kept is not None and known is not None and lasting:
        keep_findings(files.kept, KeptFindings(summary, text, page, known))
    if config.write == "splits" and files.written is not None:
        groups = groups_to_unite(scan, near, named_alike)
        named = [data.classes[label] for label in labels.tolist()]
        columns, moved = split_table(scan, named, groups, numbers, list(splits), config.data["split_seed"])
        write_table(files.written, [columns])
        _say_splits(files.written, moved, len(scan.names) - len(columns["path"]), root, terminal)
    elif files.written is not None:
        _write_skip_list(files.written, names_to_leave_out(scan, findings), config.data, terminal)
    return ExitCode.FAULTS if any(finding.kind.is_fault for finding in findings) else ExitCode.OK


def _write_files(files: Files, content: str, page: str, terminal: Terminal) -> None:
    atomic_write(files.out, content)
    atomic_write(files.page, page)
    terminal.say(f"{files.out} has all names, {files.page} the images")


def _write_skip_list(path: Path, names: "ImageNames", data: Node, terminal: Terminal) -> None:
    """Write these names, after those that data.skip_list has: the new list takes its place."""
    from imgrec.data.skip_list import read_skip_list, write_skip_list

    before = [] if (read := data.get("skip_list")) is None else read_skip_list(read).tolist()
    added = [name for name in names.tolist() if b"\n" not in name]
    listed = before + added
    with atomic_output(path) as file:
        write_skip_list(file, listed)
    train = shlex.join(["imgrec", "train", "data=imagefolder", f"data.root={data['root']}", f"data.skip_list={path}"])
    terminal.say(f"{path} leaves out {plural(len(listed), 'image')}: {train}")
    if len(added) < len(names):
        terminal.say(
            f"{plural(len(names) - len(added), 'name')} with a line break cannot be listed: rename these files", "yellow"
        )


def _say_worth(
    table: Path, splits: "Mapping[Split, ImageFiles]", leaked: "Indices", root: str, terminal: Terminal
) -> dict[str, object]:
    """Prints the test accuracy with and without the leaked images, rows of the scan, and gives what the JSON has of it."""
    from imgrec.analysis.leaks import leak_worth
    from imgrec.scan.file_scan import image_at

    tested = read_predictions(table, None, fix="Type imgrec evaluate RUN.")
    if tested.key != "path":
        raise DataError(f"{table}: its images have no paths. Name a run on the files of {root} with ckpt=.")
    paths, correct = [os.path.abspath(name) for name in tested.names.to_pylist()], tested.true == tested.predicted
    places = (image_at(splits.values(), row) for row in leaked.tolist())
    copied = {as_utf8(os.path.abspath(images.path(row))) for images, row in places}
    here = {as_utf8(os.path.abspath(images.path(row))) for images in splits.values() for row in range(len(images))}
    known = np.array([path in here for path in paths])
    if not known.any():
        folder = os.path.commonpath(list(map(os.path.dirname, paths)))
        raise DataError(
            f"ckpt={table.parent}: its test was on images of {folder}, not of {root}. Set data.root=FOLDER as in the run."
        )
    is_leaked = np.array([path in copied for path in paths])
    worth = leak_worth(correct[known], is_leaked[known])
    missing = f"; {plural(int((~known).sum()), 'image')} of its test not in {root}" * (not known.all())
    whole = f"test {percent(worth.accuracy)} {percents(worth.interval)}"
    without = (
        f", without the {plural(worth.leaked, 'leaked image')} {percent(worth.clean_accuracy)} {percents(worth.clean_interval)}"
    )
    terminal.say(f"{whole}{without if worth.leaked else ', and none of its images has a copy in train'}{missing}", "bold")
    return {"table": str(table), **worth._asdict()}


def _say_splits(path: Path, moved: int, left_out: int, root: str, terminal: Terminal) -> None:
    words = ["imgrec", "train", "data=table", f"data.file={path}", f"data.root={root}", "data.split=split"]
    terminal.say(f"{path} has {plural(moved, 'image')} in another split, so that copies are in one: {shlex.join(words)}")
    if left_out:
        terminal.say(f"{plural(left_out, 'image')} that cannot be read, or with a name that is no UTF-8, are not in it", "yellow")


if __name__ == "__main__":
    sys.exit(run_command("check", main, sys.argv[1:]))
