"""Image files with labels, decoded in the workers of the data loader, and what the data sets of image files share."""

import os
import zlib
from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import BinaryIO, Literal, Self, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.config.named_values import BadImage, Cache, Check, Decoder
from imgrec.data.augment import Augment, augment_to_size
from imgrec.data.batch import Batch, Indices, Request, Requests
from imgrec.data.decode import Preprocessing, Rows, ScaleError, decode, is_constant
from imgrec.data.decoded import DecodedImages, decoded_images
from imgrec.data.image_data import Common, ImageData, Splits
from imgrec.data.image_set import ImageSet
from imgrec.data.jpeg import check_decoder
from imgrec.data.mixup import partners
from imgrec.data.sampler import Order
from imgrec.data.shared_batches import can_share, memfd_tensor
from imgrec.errors import DataError, SourceError

# Of a split of up to MOST_SIZES files the sizes of all are compared when a run is resumed, and 4 KB from the middle of
# MOST_CHECKSUMS; of a larger one a sample. Each is a system call and more: 2 and 6 us on a local disk, 100 times that on a network's.
MOST_SIZES = 50_000
MOST_CHECKSUMS = 1000
SAMPLED = (2500, 500)


class Reading(TypedDict):
    """How image files are read, by config key; what happens to one that cannot be: in training, and in the other splits."""

    on_bad_image: BadImage
    on_bad_image_eval: BadImage
    decoder: Decoder


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

    In training an image is decoded whole the first time, and later down to the last row of its crop, with the same pixels there.
    Whether it can be read, and whether it is constant, so depends on no crop.

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
        # int64 [N], of all workers: the `file_state` of images that were decoded whole, and are not constant; 0 of the others.
        self.found_whole: Tensor | None = None

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

    def decode(self, index: int, rows: Rows | None = None) -> Tensor:
        """uint8 [C, H, W] of one image; DataError with its path. rows: as of `decode`."""
        return decode(self.path(index), self.preprocessing, self.reading["decoder"], rows)

    def file_state(self, index: int) -> int:
        """Another number once a file has changed, by its size and time; 0: not known."""
        try:
            status = os.stat(self.path(index))
        except OSError:  # `decode` says what is wrong
            return 0
        return hash((status.st_size, status.st_mtime_ns))

    def __getitem__(self, request: Request) -> Batch:
        size = request.side or self.preprocessing["image_size"]
        shape = (len(request.indices), self.preprocessing["channels"], size, size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as decoders and fast convolutions
        whole = None if self.found_whole is None else self.found_whole.numpy()
        rows: list[int] = []  # of the request, that could be read
        bad: list[str] = []
        constant: list[str] = []
        for row, index in enumerate(request.indices.tolist()):
            file, draw = index % len(self), {"seed": self.seed, "epoch": request.epoch, "index": index}
            state = 0 if whole is None else self.file_state(file)
            known = whole is not None and whole[file] == state != 0
            try:
                image = self._image(file, partial(self._needed_rows, **draw) if known else None)
            except (ScaleError, SourceError):  # of a setting, or a server: leaving images out would hide it
                raise
            except DataError as error:
                if not self.skips:
                    others = " data.check=all finds all of them before the first step." if self.training else ""
                    raise DataError(
                        f"{error} Remove or replace it, or leave unreadable images out with data.{self.bad_image_key}=skip.{others}"
                    ) from error
                bad.append(self.path(file))
                continue
            if not known and is_constant(image):
                constant.append(self.path(file))
            elif whole is not None:
                whole[file] = state
            images[len(rows)] = augment_to_size(image, self.preprocessing, self.augment, **draw, side=request.side)
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

    def _image(self, index: int, rows: Rows | None = None) -> Tensor:
        """`decode`, or what it gave the first time in any process (data.cache=ram)."""
        if self.decoded is None:
            return self.decode(index, rows)
        image = self.decoded.get(index)
        if image is None:
            self.decoded.put(index, image := self.decode(index))
        return image

    def _needed_rows(self, height: int, width: int, **draw: int) -> int:
        assert self.augment is not None
        box = self.augment.crop_box(height, width, **draw)
        return height if box is None else box[0] + box[2]

    def decoded_once(self) -> Self:
        """The same images, which all processes of this machine share once they are decoded. A collective."""
        shared = copy(self)
        shared.found_whole = None
        shared.decoded = decoded_images(self.open, len(self), self.preprocessing["channels"])
        return shared

    def take(self, rows: Indices) -> Self:
        part = copy(self)
        part.decoded = part.found_whole = None
        part.names, part.labels = self.names.take(rows), self.labels.take(rows)  # two thirds of the time of [rows]
        part.groups = None if self.groups is None else self.groups[rows]
        return part

    def content(self) -> Indices:
        content = np.full((2, len(self)), -1, dtype=np.int64)
        root = os.path.join(os.fsencode(self.root), b"")
        most = (MOST_SIZES, MOST_CHECKSUMS) if len(self) <= MOST_SIZES else SAMPLED
        rows = range(len(self))
        sized, read = (rows[:: max(1, -(-len(rows) // count))] for count in most)

        def paths(rows: range) -> Iterator[tuple[int, bytes]]:
            for row, name in zip(rows, self.names[:: rows.step].tolist(), strict=True):
                yield row, name if name.startswith(b"/") else root + name

        found = {row: _size_and_checksum(path) for row, path in paths(read)}
        content[1, :: read.step] = [checksum for _, checksum in found.values()]
        content[0, :: sized.step] = [found[row][0] if row in found else _size(path) for row, path in paths(sized)]
        return content.T

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        augmented = copy(self)
        augmented.training, augmented.augment, augmented.seed = True, augment, seed
        if augment is not None and augment.crop_scale is not None and self.decoded is None and can_share():
            augmented.found_whole = memfd_tensor(8 * len(self)).view(torch.int64)
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


def _size_and_checksum(path: bytes) -> tuple[int, int]:
    """The checksum is of 4 KB from the middle."""
    try:
        file = os.open(path, os.O_RDONLY)  # half of the time of a Python file
        try:
            size = os.fstat(file).st_size
            return size, zlib.crc32(os.pread(file, 4096, size // 2))
        finally:
            os.close(file)
    except OSError:
        return _size(path), -1
