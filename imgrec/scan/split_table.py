"""Splits without copies across them, as a table that data=table reads."""

import os
from collections.abc import Sequence

import numpy as np

from imgrec.analysis.image_faults import FileState
from imgrec.analysis.leaks import first_of_group, unite_groups
from imgrec.config.schema import Split
from imgrec.data.batch import Indices
from imgrec.files import is_utf8
from imgrec.scan.file_scan import Scan


def split_table(
    scan: Scan, classes: Sequence[str], groups: Indices, numbers: Indices, order: Sequence[Split], seed: int
) -> tuple[dict[str, list[str]], int]:
    """The columns of the images of a scan [N] that can be read, each group in one split, and how many are in another than before.

    classes: the name of each image's class; numbers: its split, as its place in `order`; groups and seed: of `unite_groups`.
    """
    united = unite_groups(scan.names, groups, numbers, seed)
    names = list(map(os.fsdecode, scan.names.tolist()))
    kept = [row for row in np.flatnonzero(scan.facts["state"] == FileState.WHOLE).tolist() if is_utf8(names[row])]
    firsts = first_of_group(scan.names, groups).tolist()
    columns = {
        "path": [names[row] for row in kept],
        "label": [classes[row] for row in kept],
        "split": [order[united[row]] for row in kept],
        "copy_of": [names[firsts[row]] for row in kept],
    }
    return columns, int((united != numbers)[kept].sum())
