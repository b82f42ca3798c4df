"""Folders of image files: ROOT/train|val|test/CLASS/*, or ROOT/CLASS/* that is cut; decoded in the loader's workers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Indices, Request
from imgrec.data.decode import Preprocessing, crop_resized, decode, fit_to_size
from imgrec.data.mixup import partners
from imgrec.data.splits import unknown_class
from imgrec.errors import DataError
from imgrec.files import IMAGE_EXTENSIONS, find_images

BadImage = Literal["refuse", "skip"]
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class FileNames:
    """File names in one block of bytes: counting references would copy a million Python strings into every worker."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.ends: NDArray[np.int64] = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.block = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> str:
        start = self.ends[place - 1] if place else 0
        return os.fsdecode(self.block[start : self.ends[place]].tobytes())


class ImageFiles(Dataset[Batch]):
    """Image files with labels; a request is decoded, cropped and resized in a loop into one uint8 batch [B, C, S, S].

    A file that cannot be read raises DataError with its path, or is left out of the batch and named in `Batch.bad` where
    `on_bad_image` (of the training split) or `on_bad_image_eval` (of the others) says skip. No image takes its place.
    """

    def __init__(
        self,
        root: str,
        names: FileNames,
        labels: Indices,
        *,
        preprocessing: Preprocessing,
        on_bad_image: BadImage,
        on_bad_image_eval: BadImage,
    ) -> None:
        assert len(names) == len(labels)
        self.root, self.names, self.labels, self.preprocessing = root, names, labels, preprocessing
        self.on_bad_image, self.on_bad_image_eval = on_bad_image, on_bad_image_eval
        self.rows: Indices = np.arange(len(labels), dtype=np.int64)
        self.training, self.seed = False, 0
        self.augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.names[int(self.rows[index])])

    def __getitem__(self, request: Request) -> Batch:
        size, channels = self.preprocessing["image_size"], self.preprocessing["channels"]
        shape = (len(request.indices), channels, size, size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as decoders write and networks read
        kept: list[int] = []
        bad: list[str] = []
        skip = (self.on_bad_image if self.training else self.on_bad_image_eval) == "skip"
        for asked, index in enumerate(request.indices.tolist()):
            path = self.path(index % len(self))
            try:
                image = decode(path, channels)
            except DataError as error:
                if not skip:
                    key = "on_bad_image" if self.training else "on_bad_image_eval"
                    raise DataError(
                        f"{error} Remove or replace it, or leave out what cannot be read: data.{key}=skip."
                    ) from error
                bad.append(path)
                continue
            box = None
            if self.augment is not None:
                height, width = image.shape[-2:]
                box = self.augment.crop_box(height, width, seed=self.seed, epoch=request.epoch, index=index)
            image = fit_to_size(image, self.preprocessing) if box is None else crop_resized(image, box, size, size)
            if self.augment is not None and self.augment.needs_samples:
                image = self.augment.sample(image, seed=self.seed, epoch=request.epoch, index=index)
            images[len(kept)] = image
            kept.append(asked)
        rows = np.array(kept, dtype=np.int64)
        indices = request.indices[rows]
        labels = torch.from_numpy(self.labels[indices % len(self)])
        mates = torch.from_numpy(partners(rows, len(request.indices)))
        return Batch(images[: len(kept)], labels, torch.from_numpy(indices), mates, request.epoch, request.whole, tuple(bad))

    def take(self, rows: Indices) -> Self:
        taken = self._copy()
        taken.rows, taken.labels = self.rows[rows], self.labels[rows]
        return taken

    def for_training(self, augment: Augment | None, seed: int) -> Self:
        trained = self._copy()
        trained.training, trained.augment, trained.seed = True, augment, seed
        return trained

    def _copy(self) -> Self:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


def split_folders(root: str) -> dict[str, str]:
    """Folder of each split; {"train": root} where the class folders lie in `root` itself. valid and validation are val too."""
    if not os.path.isdir(root):
        raise DataError(f"data.root={root} is no folder. Set data.root=FOLDER that holds train/CLASS/*.jpg, or CLASS/*.jpg.")
    found = {split: [name for name in names if (Path(root) / name).is_dir()] for split, names in SPLIT_FOLDERS.items()}
    if len(found["val"]) > 1:
        raise DataError(f"{root} has the folders {' and '.join(found['val'])}, and both mean validation. Remove or rename one.")
    if not found["train"]:
        others = [*found["val"], *found["test"]]
        if others:
            raise DataError(f"{root} has {' and '.join(others)}, but no train. Add the folder train.")
        return {"train": root}
    return {split: os.path.join(root, names[0]) for split, names in found.items() if names}


def folder_split(
    root: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    on_bad_image: BadImage,
    on_bad_image_eval: BadImage,
    whole: bool = False,
) -> ImageFiles:
    """ROOT/CLASS/* as a split, its folders mapped to `classes` by name; `whole`: every class must have images (train).

    Lists the files and opens none: about a second for 200,000. DataError for no folder, an unknown or empty class, no images.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root} is no folder. Name a folder that holds CLASS/*.jpg.")
    place = {name: k for k, name in enumerate(classes)}
    names: list[str] = []
    counts = np.zeros(len(classes), dtype=np.int64)
    for folder in sorted(class_folders(root), key=lambda name: place.get(name, -1)):
        if folder not in place:
            raise unknown_class(folder, tuple(classes), root)
        before = len(names)
        names.extend(find_images(root, folder))
        counts[place[folder]] = len(names) - before
    if not names:
        raise DataError(
            f"{root} has no images in class folders (names that end in {', '.join(IMAGE_EXTENSIONS)}). Put them in {root}/CLASS/."
        )
    if whole and counts.min() == 0:
        empty = classes[int(counts.argmin())]
        raise DataError(f"the class folder {os.path.join(root, empty)} has no images. Add some, or remove the folder.")
    return ImageFiles(
        root,
        FileNames(names),
        np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        preprocessing=preprocessing,
        on_bad_image=on_bad_image,
        on_bad_image_eval=on_bad_image_eval,
    )


def class_folders(root: str) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
