"""Making and checking splits."""

from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from imgrec.data import counter_rng
from imgrec.data.batch import Indices
from imgrec.data.image_set import ImageSet
from imgrec.data.split_record import DataRecord, composed_names
from imgrec.errors import DataError, plural

Images = TypeVar("Images", bound=ImageSet)
STREAMS = {"test": counter_rng.TEST_SPLIT, "val": counter_rng.VAL_SPLIT}


def split_off(
    images: Images,
    into: Literal["val", "test"],
    share: float,
    *,
    classes: tuple[str, ...],
    seed: int,
    record: DataRecord | None = None,
) -> tuple[Images, Images]:
    """The rest, and a part of `share` for the split `into`: by the names of the images where they have some, else stratified.

    record: named images are in the part where it has them there, and in the rest where it has them in another split.
    DataError where a class is too small.
    """
    key = f"data.{into}_share"
    names = composed_names(images.names)
    if names is None:
        rest, part = stratified(images.labels, share, seed=seed, classes=classes, key=key)
        return images.take(rest), images.take(part)
    if record is None:
        _check_counts(images.labels, share, classes, key)
    chosen = split_by_name(names, images.labels, share, seed=seed, stream=STREAMS[into])
    for name, split in {} if record is None else record.splits.items():
        # A test split that is there before the one for validation is cut has a folder of its own, with names of its own.
        if split.names is not None and (into, name) != ("val", "test"):
            chosen[np.isin(names, split.names)] = name == into
    return images.take(np.flatnonzero(~chosen)), images.take(np.flatnonzero(chosen))


def split_by_name(names: NDArray[np.bytes_], labels: Indices, share: float, *, seed: int, stream: int) -> NDArray[np.bool_]:
    """Which images belong to the part, bool [N]: those whose hash of (seed, stream, name) is below `share`.

    So an image stays where it is when others come and go, and a class has its share on average (of 100 images and 0.2:
    20, give or take 4). Of each class the lowest hash is in the part, and the highest two are not: the rest can be cut again.
    """
    width = -(-names.itemsize // 8)
    words = names.astype(f"S{8 * width}").view("<i8").reshape(len(names), width)
    hashes = counter_rng.hash_rows(seed, stream, torch.from_numpy(words)).numpy()
    chosen: NDArray[np.bool_] = hashes < share
    counts, parts = np.bincount(labels), np.bincount(labels[chosen], minlength=labels.max() + 1)
    if ((parts < 1) | (parts > counts - 2)).any():
        by_hash = np.lexsort((hashes, labels))
        first = np.flatnonzero(np.diff(labels[by_hash], prepend=-1))  # of each class, in that order
        end = np.append(first[1:], len(labels))
        chosen[by_hash[np.maximum(end - 2, first)]] = False
        chosen[by_hash[first]], chosen[by_hash[end - 1]] = True, False
    return chosen


def stratified(labels: Indices, share: float, *, seed: int, classes: tuple[str, ...], key: str) -> tuple[Indices, Indices]:
    """Ascending indices of the rest, and of a part of `share` with its proportion of every class (scikit-learn's split).

    key: the config key of the share, for errors. DataError where a class is too small.
    """
    _check_counts(labels, share, classes, key)
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


def _check_counts(labels: Indices, share: float, classes: tuple[str, ...], key: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < 2:
        raise DataError(
            f"class {classes[least]} has {plural(counts[least], 'image')}, "
            f"but {key}={share} needs at least 2 of each class. Add images, remove the class, or give the split its own folder."
        )


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
