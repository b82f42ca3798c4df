"""Making and checking splits."""

from collections.abc import Mapping
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from imgrec.data import counter_rng
from imgrec.data.batch import Indices
from imgrec.data.image_set import ImageSet
from imgrec.data.split_record import DataRecord, composed_names, show_name
from imgrec.errors import DataError, plural

Images = TypeVar("Images", bound=ImageSet)
HASHED_AT_ONCE = 2**15  # names
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

    Images of a group are in one of them. record: named images are in the part where it has them there, and in the rest where
    it has them in another split; others of their group follow them. DataError where a class is too small.
    """
    key = f"data.{into}_share"
    names = composed_names(images.names)
    if names is None:
        rest, part = stratified(images.labels, share, seed=seed, classes=classes, key=key)
        return images.take(rest), images.take(part)
    groups = composed_names(images.groups)
    if record is None:
        _check_counts(images.labels, share, classes, key, groups)
    chosen = split_by_name(names, images.labels, share, seed=seed, stream=STREAMS[into], groups=groups)
    known = np.zeros(len(names), dtype=bool)
    for name, split in {} if record is None else record.splits.items():
        # A test split that is there before the one for validation is cut has a folder of its own, with names of its own.
        if split.names is not None and (into, name) != ("val", "test"):
            here = np.isin(names, split.names)
            chosen[here] = name == into
            known |= here
    if groups is not None and known.any():
        for chosen_here in (True, False):
            chosen[~known & np.isin(groups, groups[known & (chosen == chosen_here)])] = chosen_here
    return images.take(np.flatnonzero(~chosen)), images.take(np.flatnonzero(chosen))


def split_by_name(
    names: NDArray[np.bytes_],
    labels: Indices,
    share: float,
    *,
    seed: int,
    stream: int,
    groups: NDArray[np.bytes_] | None = None,
) -> NDArray[np.bool_]:
    """Which images belong to the part, bool [N]: those whose hash of (seed, stream, name or group) is below `share`.

    So an image stays where it is when others come and go, and a class has its share on average (of 100 images and 0.2:
    20, give or take 4). Of each class the lowest hash is in the part, and the highest two are not: the rest can be cut again.
    Where groups have several classes these may want one in both, and then it is not in the part.
    """
    hashes = hash_names(names if groups is None else groups, seed, stream)
    chosen: NDArray[np.bool_] = hashes < share
    one = slice(None) if groups is None else _one_of_each(labels, hashes)
    counts, parts = np.bincount(labels[one]), np.bincount(labels[one][chosen[one]], minlength=labels.max() + 1)
    if ((parts < 1) | (parts > counts - 2)).any():
        one = np.arange(len(labels))[one]
        by_hash = one[np.lexsort((hashes[one], labels[one]))]
        first = np.flatnonzero(np.diff(labels[by_hash], prepend=-1))  # of each class, in that order
        end = np.append(first[1:], len(by_hash))
        for place, part in ((np.maximum(end - 2, first), False), (first, True), (end - 1, False)):
            chosen[np.isin(hashes, hashes[by_hash[place]])] = part
    return chosen


def hash_names(names: NDArray[np.bytes_], seed: int, stream: int) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each name [N]. In parts that stay in the cache of a core, in half of the time."""
    hashes = np.empty(len(names))
    for first in range(0, len(names), HASHED_AT_ONCE):
        part = names[first : first + HASHED_AT_ONCE]
        hashes[first : first + len(part)] = counter_rng.hash_words(seed, stream, _words(part))
    return hashes


def _words(names: NDArray[np.bytes_]) -> list[NDArray[np.uint64]]:
    """The bytes of the names in words of eight, column by column, the last filled up with zeros.

    Read where they are: a copy that is filled up takes as long as hashing two of its words.
    """
    if names.itemsize < 8:
        names = names.astype("S8")
    whole, rest = divmod(names.itemsize, 8)
    places = [8 * word for word in range(whole)] + [names.itemsize - 8] * (rest > 0)
    fields = np.dtype(
        {"names": [*map(str, places)], "formats": ["<u8"] * len(places), "offsets": places, "itemsize": names.itemsize}
    )
    words = [names.view(fields)[str(place)] for place in places]
    if rest:
        words[-1] = words[-1] >> np.uint64(64 - 8 * rest)  # of which the first bytes are in the word before
    return words


def _one_of_each(labels: Indices, values: NDArray[np.generic]) -> Indices:
    """One row of each pair of label and value."""
    order = np.lexsort((values, labels))
    labels, values = labels[order], values[order]
    first = np.append(True, (labels[1:] != labels[:-1]) | (values[1:] != values[:-1]))
    return np.asarray(order[first], dtype=np.int64)


def check_groups(splits: Mapping[str, ImageSet]) -> None:
    """DataError for a group with images in two splits."""
    groups = {name: set(images.groups.tolist()) for name, images in splits.items() if images.groups is not None}
    for one, other in combinations(groups, 2):
        if shared := sorted(groups[one] & groups[other]):
            raise DataError(
                f"the group {show_name(shared[0])} is in {one} and in {other}, {plural(len(shared), 'group')} in all. "
                "Put the images of a group into one split, or give no groups."
            )


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
    from sklearn.model_selection import train_test_split  # 0.15 s, which data with its own splits does not take

    rest, split = train_test_split(np.arange(len(labels), dtype=np.int64), test_size=part, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(split)


def _check_counts(
    labels: Indices, share: float, classes: tuple[str, ...], key: str, groups: NDArray[np.bytes_] | None = None
) -> None:
    counts = np.bincount(labels if groups is None else labels[_one_of_each(labels, groups)], minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] < 2:
        raise DataError(
            f"class {classes[least]} has {plural(counts[least], 'image' if groups is None else 'group')}, "
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
