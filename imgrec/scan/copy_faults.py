"""What copies among the images of a data set mean: leaks, contradictions, repetitions."""

import numpy as np
from numpy.typing import NDArray

from imgrec.analysis.duplicates import Duplicates, closest, find_duplicates, merge_groups, usual_distance
from imgrec.analysis.image_faults import FaultKind, FileState
from imgrec.data.batch import Indices
from imgrec.data.file_index import ImageNames
from imgrec.data.split_record import show_name
from imgrec.scan.data_faults import DataFinding
from imgrec.scan.file_scan import Scan
from imgrec.scan.terminal_output import SHOWN_EXAMPLES

# Pairs of different photographs as near as `usual_distance` are about 3 in a data set, 100 times fewer with so many bits less:
# these are faults, the others hints.
SURE_BITS = 4
LEAK = FaultKind(
    "leak", True, "train has the same picture, so the figures of val and test say too much",
    "Leave these out of val and test: write=skip. Where patients or bursts belong together, set data.group_from.",
)  # fmt: skip
TWO_LABELS = FaultKind(
    "two_labels", True, "the same picture is in two classes",
    "Look which class is right and remove the other; write=skip leaves out both where the pixels are the same.",
)  # fmt: skip
DUPLICATE = FaultKind(
    "duplicate", True, "the same pixels are in the class and the split already", "Remove it, or leave it out: write=skip keeps the first."
)  # fmt: skip
NEAR_DUPLICATE = FaultKind(
    "near_duplicate", False, "nearly the same picture is in the class and the split already, perhaps mirrored or turned",
    "Where such images come from one source, data.group_from keeps them in one split.",
)  # fmt: skip
IN_VAL_AND_TEST = FaultKind(
    "in_val_and_test", False, "val has the same picture, so the best epoch is chosen by a part of the test",
    "Keep it in one of them: write=splits.",
)  # fmt: skip
LOOKS_ALIKE = FaultKind(
    "looks_alike", False, "a picture that looks like it is in another split or class: of one source, or by chance",
    "Look at some: where they are of one source, data.group_from keeps them in one split.",
)  # fmt: skip
TOO_ALIKE = FaultKind(
    "too_alike", False, "the pictures look so much alike that only those with the same pixels were compared",
    "Nothing: it is so with letters, and with frames of one camera.",
)  # fmt: skip

NAMED_ALIKE = FaultKind(
    "named_alike", False, "by its name, as of a burst or a film, it belongs to images of its class in another split",
    "If so, keep them in one split: data.group_from finds in names what belongs together, or write=splits.",
)  # fmt: skip


def describe_named_alike(scan: Scan, splits: Indices, groups: Indices) -> list[DataFinding]:
    """Of the images of a scan [N] those in `groups_across_splits`, but for those in the first split of their group."""
    grouped = np.flatnonzero(groups >= 0)
    if not len(grouped):
        return []
    grouped = grouped[np.lexsort((splits[grouped], groups[grouped]))]
    first = grouped[np.unique(groups[grouped], return_index=True)[1]]
    rows = grouped[splits[grouped] > splits[first[groups[grouped]]]]
    rows.sort()
    partners = tuple(first[groups[rows[:SHOWN_EXAMPLES]]].tolist())
    said = [
        f"{show_name(scan.names[row])} and {show_name(scan.names[other])}" for row, other in zip(rows, partners, strict=False)
    ]
    return [DataFinding(NAMED_ALIKE, rows, said, rows[:0], partners)]


def find_near_copies(scan: Scan, labels: Indices, splits: Indices) -> Duplicates:
    """Copies and nearly the same pictures among the whole images of a scan; labels and splits [N], 0 for train."""
    whole = _whole(scan)
    return find_duplicates(scan.fingerprints[whole], labels[whole], splits[whole])


def _whole(scan: Scan) -> Indices:
    return np.flatnonzero(scan.facts["state"] == FileState.WHOLE)


def groups_to_unite(scan: Scan, near: Duplicates, named_alike: Indices) -> Indices:
    """What should be in one split [N], -1 alone: copies, nearly the same pictures, and what is named alike in several splits."""
    copies = np.full(len(named_alike), -1)
    copies[_whole(scan)] = near.groups
    return merge_groups(copies, named_alike)


def describe_copies(scan: Scan, labels: Indices, splits: Indices, near: Duplicates) -> list[DataFinding]:
    """Of the images of a scan [N] with these labels and splits, 0 for train; near: of `find_near_copies`."""
    whole = _whole(scan)
    split = splits[whole]
    sure = _find_sure(scan.fingerprints[whole], labels[whole], split, near)
    one_place = ~sure.across_splits & ~sure.two_labels & sure.same_pixels
    leaked, again = np.flatnonzero(sure.in_train), np.unique(sure.pairs[sure.two_labels, 1])
    contradicting = np.append(
        again, np.setdiff1d(sure.pairs[sure.two_labels, 0], again)
    )  # a line for each pair, not for each image
    repeated = np.unique(sure.pairs[one_place, 1])
    held_out = sure.across_splits & (split[sure.pairs] != 0).all(axis=1)
    measured_twice = np.setdiff1d(sure.pairs[held_out, 1], leaked)
    elsewhere = near.across_splits | near.two_labels
    none: Indices = whole[:0]
    found = [
        (LEAK, leaked, leaked, sure, sure.across_splits),
        (TWO_LABELS, contradicting, np.unique(sure.pairs[sure.two_labels & sure.same_pixels]), sure, sure.two_labels),
        (DUPLICATE, repeated, repeated, sure, one_place),
        (NEAR_DUPLICATE, np.setdiff1d(near.pairs[~elsewhere, 1], repeated), none, near, ~elsewhere & ~near.same_pixels),
        (IN_VAL_AND_TEST, measured_twice, none, sure, held_out),
        (
            LOOKS_ALIKE,
            np.setdiff1d(near.pairs[elsewhere, 1], np.concatenate([leaked, contradicting, measured_twice])),
            none,
            near,
            elsewhere,
        ),
    ]
    names = scan.names[whole]
    findings = []
    for kind, rows, left_out, copies, shown in found:
        if len(rows):
            pictures = len(again) if kind == TWO_LABELS else len(rows)
            others = [_partner(copies, shown, row) for row in rows[: min(SHOWN_EXAMPLES, pictures)].tolist()]
            sentences = [_sentence(names, copies, row, pair) for row, pair in zip(rows.tolist(), others, strict=False)]
            partners = tuple(
                None if pair is None else int(whole[copies.pairs[pair].sum() - row])
                for row, pair in zip(rows, others, strict=False)
            )
            findings.append(DataFinding(kind, whole[rows], sentences, whole[left_out], partners, pictures))
    return findings + [DataFinding(TOO_ALIKE, none, ["all of them"], none)] * near.too_alike


def _find_sure(fingerprints: NDArray[np.uint64], labels: Indices, splits: Indices, near: Duplicates) -> Duplicates:
    distance = max(0, usual_distance(len(labels)) - SURE_BITS)
    if near.too_alike:  # at a smaller distance they may not be
        return find_duplicates(fingerprints, labels, splits, distance=distance)
    return closest(near, splits, distance)


def _partner(copies: Duplicates, shown: NDArray[np.bool_], row: int) -> int | None:
    """The first of the shown pairs that has the row; None for one of several with the same pixels, of which only the first is paired."""
    pairs = np.flatnonzero(shown & (copies.pairs == row).any(axis=1))
    return int(pairs[0]) if len(pairs) else None


def _sentence(names: ImageNames, copies: Duplicates, row: int, pair: int | None) -> str:
    """'test/cat/1.jpg and train/cat/7.jpg: 2 of 64 bits differ'"""
    if pair is None:
        return show_name(names[row])
    other, bits = int(copies.pairs[pair].sum()) - row, copies.distances[pair]
    how = "the same pixels" if copies.same_pixels[pair] else f"{bits} of 64 bits differ"
    return f"{show_name(names[row])} and {show_name(names[other])}: {how}"
