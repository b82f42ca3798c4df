"""Any torch Dataset of (image, label), or one of torchvision, as a data set of imgrec."""

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from imgrec.config.instantiate import check_signature, instantiate, wrong_result
from imgrec.config.schema import Node
from imgrec.data.augment import Augment, augment_to_size
from imgrec.data.batch import Batch, Indices, Request
from imgrec.data.datasets import download_lock
from imgrec.data.decode import Preprocessing, is_constant
from imgrec.data.image_data import Common, ImageData, Splits
from imgrec.data.mixup import partners
from imgrec.data.picture import picture_pixels
from imgrec.errors import ConfigError, DataError, ImgrecError, first_line

LABELS = ("targets", "labels", "_labels")  # where torchvision's data sets have them


class TorchDataset(ImageData):
    """A map-style Dataset for each split. Of index i it gives (image, label): a PIL image or what `picture_pixels` takes, and
    the number of the class. Images have no names: they are known by their index.
    """

    in_memory = False

    def __init__(
        self, *, train: Node | None, val: Node | None, test: Node | None, classes: list[str] | None, **common: Unpack[Common]
    ) -> None:
        super().__init__(**common)
        if train is None:
            raise ConfigError(
                "data.train=null: expected a data set. Type data.train='{_target_: torchvision.datasets.SVHN, root: data, split: train}'."
            )
        self.nodes = {"train": train} | {name: node for name, node in (("val", val), ("test", test)) if node is not None}
        self.class_names = classes

    def read(self) -> Splits:
        sets = {name: _opened(f"data.{name}", node) for name, node in self.nodes.items()}
        named = {name: _class_names(dataset) for name, dataset in sets.items()}
        for name, names in named.items():
            if names != named["train"]:
                raise DataError(f"data.{name} has the classes {names}, and data.train {named['train']}. Give both the same.")
        labels = {name: read_labels(dataset, f"data.{name}") for name, dataset in sets.items()}
        count = int(labels["train"].max(initial=-1)) + 1
        classes = self.class_names or named["train"] or list(map(str, range(count)))
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise DataError(f"data.train has two classes {twice}. Set data.classes=[NAME,...], a name for each label.")
        images = {
            name: DatasetImages(dataset, labels[name], where=f"data.{name}", preprocessing=self.preprocessing())
            for name, dataset in sets.items()
        }
        return Splits(tuple(classes), images["train"], images.get("val"), images.get("test"))


class DatasetImages:
    """The images of a Dataset, read one by one in the workers of the loader, and resized into uint8 [B, C, S, S]."""

    names = groups = None

    def __init__(self, dataset: Any, labels: Indices, *, where: str, preprocessing: Preprocessing) -> None:
        self.dataset, self.labels, self.where, self.preprocessing = dataset, labels, where, preprocessing
        self.rows = np.arange(len(labels))
        self.augment: Augment | None = None
        self.seed = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, request: Request) -> Batch:
        size = request.side or self.preprocessing["image_size"]
        shape = (len(request.indices), self.preprocessing["channels"], size, size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        rows = request.indices % len(self)
        constant: list[str] = []
        for place, (index, row) in enumerate(zip(request.indices.tolist(), rows.tolist(), strict=True)):
            image = self.read_image(row)
            if is_constant(image):
                constant.append(f"{self.where}[{self.rows[row]}]")
            draw = {"seed": self.seed, "epoch": request.epoch, "index": index, "side": request.side}
            images[place] = augment_to_size(image, self.preprocessing, self.augment, **draw)
        return Batch(
            images,
            torch.from_numpy(self.labels[rows]),
            torch.from_numpy(request.indices),
            torch.from_numpy(partners(np.arange(len(rows)), len(rows))),
            request.epoch,
            request.whole,
            constant=tuple(constant),
        )

    def read_image(self, row: int) -> Tensor:
        """uint8 [C, H, W] of one image, at its own size."""
        index = int(self.rows[row])
        picture, label = _sample(self.dataset, index, self.where)
        if label != self.labels[row]:
            raise DataError(
                f"{self.where}[{index}] has the label {label}, and {self.labels[row]} in its {' or '.join(LABELS[:2])}. Make them the same."
            )
        try:
            return picture_pixels(picture, self.preprocessing)
        except DataError as error:
            raise DataError(
                f"{self.where}[{index}]: {first_line(error)}. Leave its transforms out, or end them with these."
            ) from error

    def take(self, rows: Indices) -> Self:
        part = copy(self)
        part.rows, part.labels = self.rows[rows], self.labels[rows]
        return part

    def content(self) -> Indices:
        return np.array([[-1]])

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        augmented = copy(self)
        augmented.augment, augmented.seed = augment, seed
        return augmented


def read_labels(dataset: Any, where: str) -> Indices:
    """The label of each image, int64 [N]: from an attribute that torchvision's data sets have, else every image is read once."""
    labels = _listed_labels(dataset)
    if labels is None:
        labels = np.array([_sample(dataset, index, where)[1] for index in range(len(dataset))], dtype=np.int64)
    return labels


def _listed_labels(dataset: Any) -> Indices | None:
    if isinstance(dataset, Subset):
        whole = _listed_labels(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_listed_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else np.concatenate([part for part in parts if part is not None])
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in LABELS:
        labels = np.asarray(getattr(dataset, name, ()))
        if labels.shape == (len(dataset),) and labels.dtype.kind in "iu":
            return labels.astype(np.int64)
    return None


def _sample(dataset: Any, index: int, where: str) -> tuple[object, int]:
    try:
        picture, label = dataset[index]
        return picture, operator.index(label)
    except Exception as error:  # of the user's code, or a library's
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"{where}[{index}] is no (image, label), the label the number of a class: {reason}. Fix its data set."
        ) from error


def _class_names(dataset: Any) -> list[str] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return (
        [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names] if isinstance(names, Sequence) else None
    )


def _opened(where: str, node: Node) -> Any:
    """The data set of a node; ConfigError for one without a length, DataError where it cannot be opened."""
    if "_target_" not in node:
        raise ConfigError(f"{where} has no _target_. Write _target_: PACKAGE.MODULE.NAME of a data set into it.")
    check_signature(where, node)
    # torchvision's data sets download into their root, all ranks into the same.
    downloads = node.get("download") and "root" in node
    try:
        with download_lock(str(node["root"]), str(node["_target_"])) if downloads else nullcontext():
            dataset = instantiate(node)
    except ImgrecError:
        raise
    except Exception as error:  # files that are missing or damaged, a download that failed: each data set raises its own
        raise DataError(
            f"{where}: {node['_target_']} cannot be opened: {first_line(error)}. Set its keys, {where}.KEY=VALUE."
        ) from error
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise wrong_result(where, node, "a data set with __len__ and __getitem__", dataset)
    return dataset
