"""Making and checking splits."""

import numpy as np
from sklearn.model_selection import train_test_split

from imgrec.data.batch import Indices
from imgrec.errors import DataError, plural


def stratified(labels: Indices, share: float, *, seed: int, classes: tuple[str, ...], key: str) -> tuple[Indices, Indices]:
    """Ascending indices of the rest, and of a part of `share` with its proportion of every class (scikit-learn's split).

    key: the config key of the share, for errors. DataError where a class is too small.
    """
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < 2:
        raise DataError(
            f"class {classes[least]} has {plural(counts[least], 'image')}, "
            f"but {key}={share} needs at least 2 of each class. Add images, remove the class, or give the split its own folder."
        )
    part = int(np.ceil(len(labels) * share))
    if min(part, len(labels) - part) < len(classes):
        smallest = min(0.5, round(len(classes) / len(labels) + 0.005, 2))
        raise DataError(
            f"{key}={share} of {len(labels)} images are {part}, "
            f"but both parts need at least one image of each of the {len(classes)} classes. "
            f"Set {key}={smallest}, or add images."
        )
    rest, split = train_test_split(np.arange(len(labels), dtype=np.int64), test_size=part, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(split)


def check_labels(labels: Indices, classes: tuple[str, ...], split: str) -> None:
    """DataError for a split without images, or with a label that is not an index in the class list."""
    if not len(labels):
        raise DataError(f"the {split} split has no images. Add some, or remove it.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise DataError(
            f"image {wrong[0]} of the {split} split has the label {labels[wrong[0]]}, "
            f"but the {len(classes)} classes have the labels 0 to {len(classes) - 1}. Fix the label, or add the class."
        )
