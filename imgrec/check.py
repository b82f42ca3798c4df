"""What is wrong with the images of a data set: python -m imgrec.check FOLDER"""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, check_signature
from imgrec.config.schema import OWN_TEXTS, DataConfig, Node, Split, dotted_types, parse_settings
from imgrec.config.start_checks import check_data
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, ExitCode, plural, printable
from imgrec.files import atomic_output, atomic_write, begins_with, check_output, is_utf8
from imgrec.inference.prediction_table import write_table
from imgrec.inference.stored_predictions import find_test_table, read_predictions
from imgrec.terminal import Terminal, percent, percents

if TYPE_CHECKING:
    from imgrec.data.batch import Indices
    from imgrec.data.file_index import ImageNames
    from imgrec.data.folder import ImageFiles
    from imgrec.data.image_data import ImageData
    from imgrec.scan.data_faults import DataFinding
    from imgrec.scan.file_scan import Scan

CHECK_MARK = b'{\n "imgrec": "check"'  # how our JSON begins
PAGE_START = b"<!doctype html><!-- imgrec check -->"  # and our page
SPLITS_MARK = b"path,label,split,copy_of\n"  # how our table of splits begins
ORDER: tuple[Split, ...] = ("train", "val", "test")
MOST_LISTED = 100_000  # names of a kind in the JSON


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """The keys of conf/check.yaml."""

    data: Node
    out: str
    write: Literal["skip", "splits"] | None
    ckpt: str | None
    num_workers: int | Literal["auto"]
    overwrite: bool


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Decode all files, print what was found, write the files; returns ExitCode.FAULTS where there are faults."""
    types = dotted_types(CheckConfig) | {f"data.{key}": str | None for key in OWN_TEXTS}
    config = parse_settings(CheckConfig, compose_config("check", argv, config_dir, types=types))
    data = DataConfig.from_node(config.data)
    check_data(data)
    if config.write == "skip" and "skip_list" not in data.own:
        raise ConfigError("write=skip: only data=imagefolder reads a skip list. Remove write=skip.")
    table = None if config.ckpt is None else find_test_table(config.ckpt)
    return _check(config, *_output_files(config, data), table)


def _output_files(config: CheckConfig, data: DataConfig) -> tuple[Path, Path, Path | None]:
    """The JSON, the page, and the skip list or the table of splits to write, each checked."""
    out, root = Path(config.out), data.own.get("root")
    if root is not None and out.resolve().is_relative_to(Path(root).resolve()):
        raise ConfigError(f"out={out} is in data.root={root}, where check writes nothing. Set out=FILE.json in another folder.")
    check_output("out", out, (".json",), ours=begins_with(CHECK_MARK), overwrite=config.overwrite)
    page = out.with_suffix(".html")
    check_output("out", page, (".html",), ours=begins_with(PAGE_START), overwrite=config.overwrite)
    if config.write is None:
        return out, page, None
    if config.write == "splits":
        splits = out.with_suffix(".splits.csv")
        check_output("out", splits, (".csv",), ours=begins_with(SPLITS_MARK), overwrite=config.overwrite)
        return out, page, splits
    from imgrec.data.skip_list import LIST_MARK

    skip_list = out.with_suffix(".skip.txt")
    check_output("out", skip_list, (".txt",), ours=begins_with(LIST_MARK), overwrite=config.overwrite)
    return out, page, skip_list


def _check(config: CheckConfig, out: Path, page: Path, written: Path | None, table: Path | None) -> int:
    import numpy as np

    from imgrec.analysis.name_groups import groups_across_splits
    from imgrec.data.datasets import ImageFolder
    from imgrec.data.image_data import ImageData
    from imgrec.data.loader import worker_count
    from imgrec.data.table import ImageTable
    from imgrec.scan.copy_faults import LEAK, describe_copies, describe_named_alike, find_near_copies, groups_to_unite
    from imgrec.scan.data_faults import find_faults, names_to_leave_out
    from imgrec.scan.file_scan import scan_files

    check_signature("data", config.data)
    data = build("data", config.data, ImageData)
    if not isinstance(data, ImageFolder | ImageTable):
        raise ConfigError(
            f"data: {type(data).__name__} has no folder of image files. Set data=imagefolder data.root=FOLDER, or data=table; "
            "for shards type imgrec pack verify=DIR."
        )
    terminal, start = Terminal(), time.perf_counter()
    workers = worker_count(config.num_workers, in_memory=False, processes_here=1)
    with terminal.progress_shown():
        splits = _file_splits(data)
        scan = scan_files([*splits.values()], data.root, num_workers=workers)
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
    how = f"{scan.decoded:,} decoded" if scan.decoded else "none has changed since the last check"
    sizes = {split: len(images) for split, images in splits.items()}
    summary = (
        f"{', '.join(f'{split} {size:,}' for split, size in sizes.items())} images of "
        f"{plural(len(data.classes), 'class', 'es')}; {how}, {time.perf_counter() - start:,.1f} s"
    )
    terminal.say(f"{data.root}: {summary}")
    _print(findings, terminal)
    terminal.say()
    content = _content(data.root, sizes, scan, findings)
    if table is not None:
        leaked = next((finding.rows for finding in findings if finding.kind == LEAK), numbers[:0])
        content["leak_worth"] = _say_worth(table, splits, leaked, data.root, terminal)
    atomic_write(out, json.dumps(content, indent=1))
    atomic_write(page, _page(data.root, summary, splits, findings))
    terminal.say(f"{out} has all names, {page} the images")
    if config.write == "splits" and written is not None:
        groups = groups_to_unite(scan, near, named_alike)
        named = [data.classes[label] for label in labels.tolist()]
        _write_splits(written, scan, named, groups, splits, config, data.root, terminal)
    elif written is not None:
        _write_skip_list(written, names_to_leave_out(scan, findings), config.data, terminal)
    return ExitCode.FAULTS if any(finding.kind.is_fault for finding in findings) else ExitCode.OK


def _file_splits(data: "ImageData") -> "dict[Split, ImageFiles]":
    from imgrec.data.folder import ImageFiles

    found = {split: getattr(data.splits, split) for split in ORDER}
    return {split: images for split, images in found.items() if isinstance(images, ImageFiles)}


def _print(findings: "Sequence[DataFinding]", terminal: Terminal) -> None:
    from imgrec.scan.data_faults import SHOWN_EXAMPLES

    for title, is_fault in (("faults", True), ("hints", False)):
        shown = [finding for finding in findings if finding.kind.is_fault == is_fault]
        terminal.say()
        terminal.say(title if shown else f"no {title}", "bold")
        for finding in shown:
            kind, shown_lines = finding.kind, finding.sentences[:SHOWN_EXAMPLES]
            left = finding.count - len(shown_lines)
            terminal.say(f"  {finding.count:>7,} {kind.name}: {kind.what}", "red" if is_fault else "yellow")
            terminal.say(f"{'':10}{kind.advice}")
            for line in shown_lines + [f"and {left:,} more"] * bool(left):
                terminal.say(f"{'':12}{line}", "dim")


def _content(root: str, sizes: "Mapping[Split, int]", scan: "Scan", findings: "Sequence[DataFinding]") -> dict[str, object]:
    """What the JSON has."""
    return {
        "imgrec": "check",
        "root": root,
        "images": dict(sizes),
        "faults": sum(finding.count for finding in findings if finding.kind.is_fault),
        "findings": [
            {
                "kind": finding.kind.name,
                "is_fault": finding.kind.is_fault,
                "count": finding.count,
                "what": finding.kind.what,
                "advice": finding.kind.advice,
                "examples": finding.sentences,
                "images": list(map(os.fsdecode, scan.names[finding.rows[:MOST_LISTED]].tolist())),
            }
            for finding in findings
        ],
    }


def _page(root: str, summary: str, splits: "dict[Split, ImageFiles]", findings: "Sequence[DataFinding]") -> str:
    from imgrec.analysis.image_faults import STATE_KINDS
    from imgrec.scan.check_page import Example, check_page, thumbnail
    from imgrec.scan.data_faults import SHOWN_EXAMPLES
    from imgrec.scan.file_scan import image_at

    def example(finding: "DataFinding", number: int) -> Example:
        rows = [*finding.rows[number : number + 1].tolist(), *finding.partners[number : number + 1]]
        if finding.kind in STATE_KINDS.values():  # they cannot be decoded, and may be long
            rows = []
        pictures = [thumbnail(*image_at(splits.values(), row)) for row in rows if row is not None]
        return Example(finding.sentences[number], pictures)

    sections = [
        (finding.kind, finding.count, [example(finding, k) for k in range(len(finding.sentences[:SHOWN_EXAMPLES]))])
        for finding in findings
    ]
    return check_page(f"Check of {printable(root)}", summary, sections)


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
    import numpy as np

    from imgrec.analysis.leaks import leak_worth
    from imgrec.scan.file_scan import image_at

    tested = read_predictions(table, None, fix="Type imgrec evaluate RUN.")
    if tested.key != "path":
        raise DataError(f"{table}: its images have no paths. Name a run on the files of {root} with ckpt=.")
    paths, correct = [os.path.abspath(name) for name in tested.names.to_pylist()], tested.true == tested.predicted
    places = (image_at(splits.values(), row) for row in leaked.tolist())
    copied = {os.path.abspath(images.path(row)) for images, row in places}
    here = {os.path.abspath(images.path(row)) for images in splits.values() for row in range(len(images))}
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


def _write_splits(
    path: Path,
    scan: "Scan",
    classes: "Sequence[str]",
    groups: "Indices",
    splits: "Mapping[Split, ImageFiles]",
    config: CheckConfig,
    root: str,
    terminal: Terminal,
) -> None:
    """A table for data=table of the images that can be read, each group in one split."""
    import numpy as np

    from imgrec.analysis.image_faults import FileState
    from imgrec.analysis.leaks import first_of_group, unite_groups

    numbers = np.repeat(np.arange(len(splits)), [len(images) for images in splits.values()])
    united = unite_groups(scan.names, groups, numbers, config.data["split_seed"])
    names, order = list(map(os.fsdecode, scan.names.tolist())), list(splits)
    kept = [row for row in np.flatnonzero(scan.facts["state"] == FileState.WHOLE).tolist() if is_utf8(names[row])]
    firsts = first_of_group(scan.names, groups).tolist()
    columns = {
        "path": [names[row] for row in kept],
        "label": [classes[row] for row in kept],
        "split": [order[united[row]] for row in kept],
        "copy_of": [names[firsts[row]] for row in kept],
    }
    write_table(path, [columns])
    moved = int((united != numbers)[kept].sum())
    words = ["imgrec", "train", "data=table", f"data.file={path}", f"data.root={root}", "data.split=split"]
    terminal.say(f"{path} has {plural(moved, 'image')} in another split, so that copies are in one: {shlex.join(words)}")
    if len(kept) < len(names):
        terminal.say(
            f"{plural(len(names) - len(kept), 'image')} that cannot be read, or with a name that is no UTF-8, are not in it",
            "yellow",
        )


if __name__ == "__main__":
    sys.exit(run_command("check", main, sys.argv[1:]))
