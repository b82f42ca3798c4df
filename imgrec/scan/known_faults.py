"""The faults of a data set that are known without decoding it: by the counts of its classes, and by a check of the same images."""

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from imgrec.analysis.image_faults import IMBALANCE_KIND, TINY, find_class_faults
from imgrec.config.annotations import format_value
from imgrec.config.changes import shipped_option
from imgrec.config.schema import Node, RunConfig, Split
from imgrec.data.cache import cache_folder, read_summed, write_summed
from imgrec.data.image_data import ImageData
from imgrec.data.split_record import DataRecord
from imgrec.errors import first_names
from imgrec.scan.data_faults import DataFinding
from imgrec.scan.file_scan import file_splits
from imgrec.scan.scan_cache import how_read

LISTED_CLASSES = 3  # of a line
FAULTS_VERSION = 2  # of what is kept: one more when its content changes
# The data that is checked, and its option; and the keys by which images come into splits and classes.
CHECK_OPTIONS = {"imgrec.data.datasets.ImageFolder": "imagefolder", "imgrec.data.table.ImageTable": "table"}
OF_SPLITS = (
    *("file", "root", "path", "label", "split", "group", "label_from", "group_from", "skip_list"),
    *("test_share", "val_share", "split_seed"),
)


class KnownFault(NamedTuple):
    """Images of a kind of fault, or of the imbalance of classes."""

    kind: str
    number: int
    what: str
    of_classes: bool

    def __str__(self) -> str:
        return self.what if self.of_classes else f"{self.number:,} {self.kind}: {self.what}"


class KnownFaults(NamedTuple):
    """command: which shows them."""

    found: list[KnownFault]
    command: str

    @property
    def leaked(self) -> int:
        """Images of val and test of which train has the picture."""
        return sum(fault.number for fault in self.found if fault.kind == "leak")

    def lines(self) -> list[str]:
        """One for each kind, and the command where images are meant."""
        of_images = any(not fault.of_classes for fault in self.found)
        return [*map(str, self.found), *[f"which images: {self.command}"] * of_images]


def known_faults(data: ImageData, record: DataRecord | None, run: RunConfig) -> KnownFaults:
    """What a check found in the same images in the same splits, else what the classes' counts show and the run does not answer.

    record: with the content of all splits; None where nobody asks for what a check found. It takes the time to read a small file.
    """
    found = (None if record is None else _checked(data, record)) or _of_classes(data)
    if run.sampling != "shuffle" or run.loss.get("class_weights", "none") != "none":
        found = [fault for fault in found if fault.kind != IMBALANCE_KIND.name]
    return KnownFaults(found, check_command(run.data.to_node()))


def remember_faults(data: ImageData, findings: Sequence[DataFinding]) -> tuple[str, str] | None:
    """Write what a check found into the cache, for `known_faults`; the name and the content of the file."""
    if (file := _file(data, data.record())) is None:
        return None
    of_images = [
        KnownFault(finding.kind.name, finding.count, finding.kind.what, of_classes=False)
        for finding in findings
        if finding.kind.is_fault and len(finding.rows)
    ]
    content = json.dumps({"image_size": data.preprocessing()["image_size"], "faults": [*of_images, *_of_classes(data)]})
    write_summed(file, content.encode())
    return file.name, content


def check_command(data: Node) -> str:
    """What to type to check image files in the splits that a run has; data: its keys. Nothing for data without image files."""
    if (option := CHECK_OPTIONS.get(data["_target_"])) is None:
        return ""
    default = shipped_option(f"data/{option}")
    changed = [f"data.{key}={format_value(data[key])}" for key in OF_SPLITS if key in data and data[key] != default[key]]
    return shlex.join(["imgrec", "check", *[f"data={option}"] * (option != "imagefolder"), *changed])


def _of_classes(data: ImageData) -> list[KnownFault]:
    counts = {split: counts for split in get_args(Split) if (counts := data.counts(split)).any()}
    return [
        KnownFault(kind.name, len(said), f"{first_names(said, LISTED_CLASSES).removesuffix('.')}. {kind.advice}", of_classes=True)
        for kind, said in find_class_faults(counts, data.classes).items()
    ]


def _checked(data: ImageData, record: DataRecord) -> list[KnownFault]:
    """Nothing where no check is known, or its file is damaged."""
    file = _file(data, record)
    try:
        content = {"faults": []} if file is None else json.loads(read_summed(file))
        found = [KnownFault(*fault) for fault in content["faults"]]
        same_size = file is None or content["image_size"] == data.preprocessing()["image_size"]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [fault for fault in found if same_size or fault.kind != TINY.name]


def _file(data: ImageData, record: DataRecord) -> Path | None:
    """Of the cache, by the names, labels, sizes and checksums of the images of each split, as the record has them, and how they are read."""
    folder, splits = cache_folder(), file_splits(data)
    if folder is None or not splits:
        return None
    digest = hashlib.sha1(record.digest().encode(), usedforsecurity=False)
    digest.update(repr([(split, how_read(images)) for split, images in splits.items()]).encode())
    for split, images in splits.items():
        content = record.splits[split].content
        digest.update(f"{split} {os.path.realpath(images.path(0))} ".encode(errors="surrogateescape"))
        digest.update(content[np.flatnonzero((content >= 0).any(axis=1))].tobytes())
    return folder / f"checked-{digest.hexdigest()}-{FAULTS_VERSION}"
