"""The images of a run: the splits, the classes and the preprocessing of a data set. Each data set overrides `read`."""

from collections import Counter
from collections.abc import Collection
from copy import copy
from functools import cached_property
from typing import Literal, NamedTuple, NotRequired, Self, get_args

import numpy as np
from numpy.typing import NDArray

from imgrec.config.annotations import describe_type, format_value
from imgrec.config.named_values import Check
from imgrec.config.schema import SPLITS, Split
from imgrec.data.decode import Preprocessing
from imgrec.data.folds import fold_numbers, in_fold
from imgrec.data.image_set import ImageSet
from imgrec.data.split_record import DataRecord
from imgrec.data.splits import Images, check_groups, check_labels, split_off
from imgrec.errors import ConfigError, DataError, did_you_mean, first_names

OnChange = Literal["refuse", "accept"]


class Common(Preprocessing):
    """The keys that every data yaml has."""

    num_classes: int | None
    val_share: float
    split_seed: int
    changed: OnChange
    fold: NotRequired[list[int] | None]  # of `imgrec train folds=K` alone, so no yaml has it: [number from 1, K]


class Splits(NamedTuple):
    """What a set reads. `val` None: it is cut from train. `test` None: there is none. unlabelled: a folder to predict."""

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    unlabelled: str | None = None


class ImageData:
    """Base of the data sets. What `read` gives is checked, and read once, when it is first asked for.

    Raises ConfigError for keys that contradict each other or what was found, DataError for data that cannot be used.
    """

    in_memory = True
    check: Check = "auto"  # which image files `find_unreadable` decodes

    def __init__(
        self,
        *,
        num_classes: int | None,
        image_size: int,
        channels: int,
        mean: list[float],
        std: list[float],
        resize: Literal["squash", "crop"],
        crop_share: float,
        interpolation: Literal["bilinear", "bicubic"],
        max_pixels: int,
        scale: list[float] | None,
        val_share: float,
        split_seed: int,
        changed: OnChange,
        fold: list[int] | None = None,
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                fit = "[" + ",".join([f"{sum(values) / max(1, len(values)):.4g}"] * channels) + "]"
                raise ConfigError(f"data.{name} has {len(values)} values, but data.channels={channels}. Set data.{name}={fit}.")
        if scale is not None and (len(scale) != 2 or scale[0] >= scale[1]):
            raise ConfigError(
                f"data.scale={format_value(scale)}: expected [BLACK,WHITE], the lower value first. Set data.scale=[0,4095]."
            )
        if fold is not None and not (len(fold) == 2 and 1 <= fold[0] <= fold[1]):
            raise ConfigError(f"data.fold={format_value(fold)}: expected [NUMBER,FOLDS]. Type imgrec train folds=5 instead.")
        self.num_classes, self.val_share, self.split_seed, self.changed = num_classes, val_share, split_seed, changed
        self.fold = fold
        self._record: DataRecord | None = None
        self.group_shares: dict[Split, tuple[float, float]] = {}  # where groups were cut off: as wanted, and of the images
        self.beside: list[str] = []  # folders beside those of the splits, which `read` does not look into
        self.ignored: Counter[str] = Counter()  # files that were passed over by `read`, by their extension
        self._preprocessing = Preprocessing(
            image_size=image_size,
            channels=channels,
            mean=list(mean),
            std=list(std),
            resize=resize,
            crop_share=crop_share,
            interpolation=interpolation,
            max_pixels=max_pixels,
            scale=scale and list(scale),
        )

    def read(self) -> Splits:
        """The set's splits, as they are stored."""
        raise NotImplementedError

    def describe_classes(self, count: int) -> str:
        """'FOLDER has 12 class folders', for the error about num_classes."""
        return f"{type(self).__name__} has {count} classes"

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def following(self, record: DataRecord) -> Self:
        """The same data, to be read anew: where it is cut, images go to the splits that they have in the record."""
        other = copy(self)
        for name in ("_as_read", "splits", "held_out"):
            other.__dict__.pop(name, None)
        other._record = record
        return other

    def cut(self, images: Images, classes: tuple[str, ...], into: Literal["val", "test"], share: float) -> tuple[Images, Images]:
        """The rest of the images, and `share` of them for another split, by class; DataError where a class is too small."""
        rest, part = split_off(images, into, share, classes=classes, seed=self.split_seed, record=self._record)
        if images.groups is not None:
            self.group_shares[into] = share, len(part) / len(images)
        return rest, part

    @cached_property
    def _as_read(self) -> Splits:
        splits = self.read()
        given = splits[1:4] if isinstance(splits, Splits) else (splits,)
        for images in (given[0], *(images for images in given[1:] if images is not None)):
            if not isinstance(images, ImageSet):
                raise ConfigError(
                    f"{type(self).__name__}.read returns a {type(images).__name__}: expected Splits of InMemoryImages, ImageFiles "
                    "or another ImageSet. Return Splits(classes, train=..., val=None, test=None)."
                )
        return splits

    @cached_property
    def splits(self) -> Splits:
        """The splits, read and checked, with a validation split."""
        splits = self._as_read
        count = len(splits.classes)
        if self.num_classes not in (None, count):
            names = first_names(splits.classes, 3)
            raise ConfigError(
                f"data.num_classes={self.num_classes}, but {self.describe_classes(count)} ({names}). Set data.num_classes={count}."
            )
        for name, images in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
            if images is not None:
                check_labels(images.labels, splits.classes, name)
        if self.fold is not None:
            held_out = self.held_out
            train, val = splits.train.take(np.flatnonzero(~held_out)), splits.train.take(np.flatnonzero(held_out))
            splits = splits._replace(train=train, val=val)
        elif splits.val is None:
            train, val = self.cut(splits.train, splits.classes, "val", self.val_share)
            splits = splits._replace(train=train, val=val)
        check_groups({name: images for name in SPLITS if (images := getattr(splits, name)) is not None})
        return splits

    @property
    def pool(self) -> ImageSet:
        """The images of which folds are cut: train, before one for validation is cut off. A validation split of the data's own is none of it."""
        return self._as_read.train

    @property
    def given_validation(self) -> ImageSet | None:
        """The validation split that the data has of its own."""
        return self._as_read.val

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """Which images of the pool [N] are in `fold`, so for validation; DataError where there are too few of a class."""
        assert self.fold is not None
        number, folds = self.fold
        numbers = fold_numbers(self.pool, folds, classes=self._as_read.classes, seed=self.split_seed)
        return in_fold(self.pool, numbers, number - 1, self._record)

    def record(self, *, content: Collection[Split] = get_args(Split)) -> DataRecord:
        """What the splits hold; content: the splits whose sizes or checksums are recorded too."""
        splits = {name: images for name in get_args(Split) if (images := getattr(self.splits, name)) is not None}
        return DataRecord.of(self.classes, splits, content=content)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels, from train; not yet compared with num_classes."""
        return self._as_read.classes

    def split(self, name: Split) -> ImageSet:
        """One split; DataError where the set has none of that name."""
        if name not in get_args(Split):
            raise ConfigError(f"split={name}: expected {describe_type(Split)}.{did_you_mean(name, get_args(Split))}")
        images: ImageSet | None = getattr(self.splits, name)
        if images is None:
            present = [split for split in SPLITS if getattr(self.splits, split) is not None]
            raise DataError(f"{type(self).__name__} has no {name} split, only {', '.join(present)}. Set split={present[-1]}.")
        return images

    def group_counts(self) -> dict[Split, int]:
        """Groups of each split; nothing where images belong to none."""
        splits: dict[Split, ImageSet | None] = {name: getattr(self.splits, name) for name in get_args(Split)}
        return {
            name: len(set(images.groups.tolist()))
            for name, images in splits.items()
            if images is not None and images.groups is not None
        }

    def counts(self, name: Split) -> NDArray[np.int64]:
        """Images per class, int64 [K]; zeros where there is no such split."""
        images: ImageSet | None = getattr(self.splits, name)
        return np.bincount([] if images is None else images.labels, minlength=len(self.classes)).astype(np.int64, copy=False)
