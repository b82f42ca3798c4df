"""Folders of image files, ROOT/train|val|test/CLASS/* or ROOT/CLASS/*; decoded in the workers of the data loader."""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from itertools import chain
from typing import BinaryIO, Literal, Self, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.data.augment import Augment, augment_to_size
from imgrec.data.batch import Batch, Indices, Request, Requests
from imgrec.data.decode import Preprocessing, ScaleError, decode, is_constant
from imgrec.data.decoded import DecodedImages, decoded_images
from imgrec.data.file_index import FileIndex, join_names, pack_names
from imgrec.data.file_names import find_in_names
from imgrec.data.image_data import Check, Common, ImageData, Splits
from imgrec.data.image_set import ImageSet
from imgrec.data.jpeg import Decoder, check_decoder
from imgrec.data.mixup import partners
from imgrec.data.sampler import Order
from imgrec.data.split_folders import filled_class_folders
from imgrec.errors import DataError, SourceError, did_you_mean, first_names, shorten
from imgrec.files import EXTENSIONS_TEXT, composed

# Of a split of up to MOST_SIZES files the sizes of all are compared when a run is resumed, and 4 KB from the middle of
# MOST_CHECKSUMS; of a larger one a sample. Each is a system call and more: 2 and 6 us on a local disk, 100 times that on a network's.
MOST_SIZES, MOST_CHECKSUMS, SAMPLED = 50_000, 1000, (2500, 500)
BadImage = Literal["refuse", "skip"]


class Reading(TypedDict):
    """How image files are read, by config key; what happens to one that cannot be: in training, and in the other splits."""

    on_bad_image: BadImage
    on_bad_image_eval: BadImage
    decoder: Decoder


Cache = Literal["none", "ram"]


class FileKeys(Common):
    """The keys that every data yaml of image files has."""

    test_share: float
    on_bad_image: BadImage
    on_bad_image_eval: BadImage
    decoder: Decoder
    cache: Cache
    check: Check


class FileData(ImageData):
    """Base of the data sets of image files. reading: what its splits are made with."""

    in_memory = False

    def __init__(
        self,
        *,
        test_share: float,
        on_bad_image: BadImage,
        on_bad_image_eval: BadImage,
        decoder: Decoder,
        cache: Cache,
        check: Check,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.test_share, self.cache, self.check = test_share, cache, check
        check_decoder(decoder)
        self.reading = Reading(on_bad_image=on_bad_image, on_bad_image_eval=on_bad_image_eval, decoder=decoder)

    def cut_test(self, images: "ImageFiles", classes: tuple[str, ...]) -> Splits:
        """The test split is taken from all images, the validation split from the rest later."""
        train, test = self.cut(images, classes, "test", self.test_share)
        return Splits(classes, train=train, val=None, test=test)


class ImageFiles:
    """Image files with labels; those of a request are decoded, cropped and resized one by one into uint8 [B, C, S, S].

    An unreadable file raises DataError with its path. With `on_bad_image: skip` (training) or `on_bad_image_eval: skip`
    (the other splits) it is listed in `Batch.bad` instead, and the batch has one image less.
    """

    def __init__(
        self,
        root: str,
        names: NDArray[np.bytes_],
        labels: Indices,
        *,
        preprocessing: Preprocessing,
        groups: NDArray[np.bytes_] | None = None,
        **reading: Unpack[Reading],
    ) -> None:
        assert len(names) == len(labels)
        self.root, self.names, self.labels, self.groups, self.preprocessing = root, names, labels, groups, preprocessing
        self.reading = reading
        self.is_far = False  # reading an image may take a request over a network: none is looked at before it is needed
        self.training, self.seed = False, 0
        self.augment: Augment | None = None
        self.decoded: DecodedImages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bad_image_key(self) -> Literal["on_bad_image", "on_bad_image_eval"]:
        """Of the two keys the one that holds for this split."""
        return "on_bad_image" if self.training else "on_bad_image_eval"

    @property
    def skips(self) -> bool:
        """Whether unreadable images are left out."""
        return self.reading[self.bad_image_key] == "skip"

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def reading_order(self, order: Order, seed: int) -> Order:
        """An order of training as these images are read best."""
        return order

    def reading_rows(self) -> Indices:
        """All images, in the order in which an evaluation reads them."""
        return np.arange(len(self))

    def announced(self, requests: Requests) -> Requests:
        """The requests, of which those that follow are prepared where that takes long."""
        return requests

    def open(self, index: int) -> BinaryIO:
        """The image file as it is stored."""
        return open(self.path(index), "rb", buffering=0)  # PIL and `decode` read large pieces

    def decode(self, index: int) -> Tensor:
        """uint8 [C, H, W] of one image; DataError with its path."""
        return decode(self.path(index), self.preprocessing, self.reading["decoder"])

    def __getitem__(self, request: Request) -> Batch:
        size = request.side or self.preprocessing["image_size"]
        shape = (len(request.indices), self.preprocessing["channels"], size, size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as decoders and fast convolutions
        rows: list[int] = []  # of the request, that could be read
        bad: list[str] = []
        constant: list[str] = []
        for row, index in enumerate(request.indices.tolist()):
            try:
                image = self._image(index % len(self))
            except (ScaleError, SourceError):  # of a setting, or a server: leaving images out would hide it
                raise
            except DataError as error:
                if not self.skips:
                    others = " data.check=all finds all of them before the first step." if self.training else ""
                    raise DataError(
                        f"{error} Remove or replace it, or leave unreadable images out with data.{self.bad_image_key}=skip.{others}"
                    ) from error
                bad.append(self.path(index % len(self)))
                continue
            if is_constant(image):
                constant.append(self.path(index % len(self)))
            draw = {"seed": self.seed, "epoch": request.epoch, "index": index, "side": request.side}
            images[len(rows)] = augment_to_size(image, self.preprocessing, self.augment, **draw)
            rows.append(row)
        read = np.array(rows, dtype=np.int64)
        indices = request.indices[read]
        labels = torch.from_numpy(self.labels[indices % len(self)])
        partner_rows = torch.from_numpy(partners(read, len(request.indices)))
        return Batch(
            images[: len(rows)],
            labels,
            torch.from_numpy(indices),
            partner_rows,
            request.epoch,
            request.whole,
            tuple(bad),
            tuple(constant),
        )

    def _image(self, index: int) -> Tensor:
        """`decode`, or what it gave the first time in any process (data.cache=ram)."""
        if self.decoded is None:
            return self.decode(index)
        image = self.decoded.get(index)
        if image is None:
            self.decoded.put(index, image := self.decode(index))
        return image

    def decoded_once(self) -> Self:
        """The same images, which all processes of this machine share once they are decoded. A collective."""
        shared = copy(self)
        shared.decoded = decoded_images(self.open, len(self), self.preprocessing["channels"])
        return shared

    def take(self, rows: Indices) -> Self:
        part = copy(self)
        part.decoded = None
        part.names, part.labels = self.names.take(rows), self.labels.take(rows)  # two thirds of the time of [rows]
        part.groups = None if self.groups is None else self.groups[rows]
        return part

    def content(self) -> Indices:
        content = np.full((2, len(self)), -1, dtype=np.int64)
        root = os.path.join(os.fsencode(self.root), b"")
        most = (MOST_SIZES, MOST_CHECKSUMS) if len(self) <= MOST_SIZES else SAMPLED
        for row, look in enumerate((_size, _checksum)):
            step = max(1, -(-len(self) // most[row]))
            content[row, ::step] = [look(name if name.startswith(b"/") else root + name) for name in self.names[::step].tolist()]
        return content.T

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        augmented = copy(self)
        augmented.training, augmented.augment, augmented.seed = True, augment, seed
        return augmented


def reading_rows(images: ImageSet) -> Indices:
    """All images of a split, in the order in which an evaluation reads them."""
    return images.reading_rows() if isinstance(images, ImageFiles) else np.arange(len(images))


def announced(images: ImageSet, requests: Requests) -> Requests:
    """Requests of a split, of which those that follow are prepared where that takes long."""
    return images.announced(requests) if isinstance(images, ImageFiles) else requests


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # where it is gone or cannot be read, training says so
        return -1


def _checksum(path: bytes) -> int:
    """Of 4 KB from the middle."""
    try:
        file = os.open(path, os.O_RDONLY)  # half of the time of a Python file
        try:
            return zlib.crc32(os.pread(file, 4096, os.fstat(file).st_size // 2))
        finally:
            os.close(file)
    except OSError:
        return -1


def label_indices(labels: Sequence[str], classes: Sequence[str], place: Callable[[int], str]) -> Indices:
    """The labels as indices in the class list; DataError, with the place of the image, for one that is not in it."""
    index = {name: k for k, name in enumerate(classes)}
    if unknown := set(labels) - index.keys():
        row = next(row for row, label in enumerate(labels) if label in unknown)
        raise DataError(
            f"{place(row)}: the class {shorten(labels[row])}, but train does not have it ({first_names(classes, 10)})."
            f"{did_you_mean(labels[row], classes)} Correct it, or add such an image to train."
        )
    return np.fromiter(map(index.__getitem__, labels), dtype=np.int64, count=len(labels))


def folder_split(
    root: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    whole: bool = False,
    ignored: Counter[str] | None = None,
    group_from: re.Pattern[str] | None = None,
    files: FileIndex | None = None,
    **reading: Unpack[Reading],
) -> ImageFiles:
    """The split ROOT/CLASS/*, its class folders mapped to `classes` by name, in whichever form of Unicode it is written.

    whole: every class must have images, as in train. `ignored` counts the files that are no images. Files are listed, not
    opened. files: the index of ROOT, where that is open already.
    DataError for a missing folder, an unknown or empty class, or no images.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder. Name a folder with CLASS/*.jpg.")
    folders: dict[str, list[str]] = {}
    files = FileIndex(root) if files is None else files
    for folder in filled_class_folders(files, ignored=ignored):
        folders.setdefault(composed(folder), []).append(folder)
    if unknown := sorted(folders.keys() - set(classes)):
        raise DataError(
            f"{root} has the class {unknown[0]}, but train does not ({first_names(classes, 10)}).{did_you_mean(unknown[0], classes)} "
            "Rename the folder, or add the class to train."
        )
    found = [[files.find(folder, ignored=ignored) for folder in folders.get(name, [])] for name in classes]
    files.keep()
    counts = [sum(map(len, parts)) for parts in found]
    if not any(counts):
        raise DataError(
            f"{root} has no images in class folders (files that end in {EXTENSIONS_TEXT}). Put them into {root}/CLASS/."
        )
    if whole and 0 in counts:
        empty = os.path.join(root, classes[counts.index(0)])
        raise DataError(f"the class folder {empty} has no images. Add some, or remove it.")
    names = join_names(list(chain.from_iterable(found)))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    groups = None
    if group_from is not None:
        groups = pack_names(find_in_names("group_from", group_from, root, list(map(os.fsdecode, names.tolist()))))
    return ImageFiles(root, names, labels, preprocessing=preprocessing, groups=groups, **reading)


def named_split(
    root: str,
    names: Sequence[str],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    label_from: re.Pattern[str],
    group_from: re.Pattern[str] | None = None,
    **reading: Unpack[Reading],
) -> ImageFiles:
    """The split of these images below ROOT, which `find_images` gives, their classes found in their names and mapped to `classes`.

    DataError for a name in which none is found, or another class.
    """
    if not names:
        raise DataError(f"{root} has no images (files that end in {EXTENSIONS_TEXT}). Add some, or name another folder.")
    labels = find_in_names("label_from", label_from, root, names)
    indices = label_indices(labels, classes, lambda row: os.path.join(root, names[row]))
    groups = None if group_from is None else pack_names(find_in_names("group_from", group_from, root, names))
    return ImageFiles(root, pack_names(names), indices, preprocessing=preprocessing, groups=groups, **reading)
