"""The training images in parts of which each is the validation split of one training: cross-validation."""

import numpy as np
from numpy.typing import NDArray

from imgrec.data.batch import Indices
from imgrec.data.image_set import ImageSet
from imgrec.data.split_record import DataRecord, composed_names
from imgrec.errors import DataError, plural


def fold_numbers(images: ImageSet, folds: int, *, classes: tuple[str, ...], seed: int) -> Indices:
    """The fold of each image [N], 0 to folds - 1: by class, and images of a group in one of them (scikit-learn's folds).

    DataError where a class has fewer images, or groups, than there are folds.
    """
    labels, groups = images.labels, composed_names(images.groups)
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    pairs = np.unique(np.stack([labels, units]), axis=1)[0]
    counts = np.bincount(pairs, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < folds:
        what = plural(counts[least], "image" if groups is None else "group")
        fix = f"Set folds={counts[least]}, or add" if counts[least] > 1 else "Add"
        raise DataError(f"folds={folds}: class {classes[least]} has {what} in train, and each fold needs one. {fix} some of it.")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # 0.15 s

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    numbers = np.empty(len(labels), dtype=np.int64)
    for number, (_, rows) in enumerate(kind(folds, shuffle=True, random_state=seed).split(np.empty(len(labels)), labels, groups)):
        numbers[rows] = number
    return numbers


def in_fold(images: ImageSet, numbers: Indices, number: int, record: DataRecord | None) -> NDArray[np.bool_]:
    """Which images [N] are in a fold; named ones that are in train or val of the record are in the fold where they are in val."""
    chosen: NDArray[np.bool_] = numbers == number
    names = composed_names(images.names)
    if record is not None and names is not None:
        for split in ("train", "val"):
            if (known := record.splits.get(split)) is not None and known.names is not None:
                chosen[np.isin(names, known.names)] = split == "val"
    return chosen
