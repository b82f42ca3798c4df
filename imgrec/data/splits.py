"""Cutting and checking splits."""

from difflib import get_close_matches

import numpy as np
from sklearn.model_selection import train_test_split

from imgrec.data.batch import Indices
from imgrec.errors import DataError


def stratified(labels: Indices, share: float, *, seed: int, classes: tuple[str, ...], key: str) -> tuple[Indices, Indices]:
    """Places of the rest and of a part of `share` that holds every class in proportion, both in order.

    The cut is scikit-learn's. DataError where a class is too small for it; `key` is the config key of the share.
    """
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < 2:
        raise DataError(
            f"class {classes[least]} has {counts[least]} image{'' if counts[least] == 1 else 's'}, "
            f"and a cut by {key}={share} needs at least 2 of each class. "
            "Add images of it, remove the class, or give the split a folder of its own."
        )
    part = int(np.ceil(len(labels) * share))
    if min(part, len(labels) - part) < len(classes):
        wanted = min(0.5, round(len(classes) / len(labels) + 0.005, 2))
        raise DataError(
            f"{key}={share} of {len(labels)} images are {part}: "
            f"one side of the cut would have fewer images than there are classes ({len(classes)}). "
            f"Set {key}={wanted}, or add images."
        )
    rest, cut = train_test_split(np.arange(len(labels), dtype=np.int64), test_size=part, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(cut)


def check_labels(labels: Indices, classes: tuple[str, ...], split: str) -> None:
    """DataError for a split that is empty or holds a label that is no place in the class list."""
    if not len(labels):
        raise DataError(f"the {split} split has no images. Add some, or remove the split.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise DataError(
            f"image {wrong[0]} of the {split} split has the label {labels[wrong[0]]}, "
            f"but the {len(classes)} classes have the labels 0 to {len(classes) - 1}. Mend the label or add the class."
        )


def unknown_class(name: str, classes: tuple[str, ...], where: str) -> DataError:
    """The error for a class that a split has and train has not."""
    near = get_close_matches(name, classes, n=1, cutoff=0.5)
    known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    hint = f" Did you mean {near[0]}?" if near else ""
    return DataError(
        f"{where} has the class {name}, which train lacks ({known}).{hint} Rename the folder, or add the class to train."
    )
