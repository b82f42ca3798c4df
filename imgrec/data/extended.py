"""The images of a trained run and a folder with more classes: what `imgrec extend` trains on."""

import os
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from imgrec.config.instantiate import build
from imgrec.data.batch import Indices, Request
from imgrec.data.datasets import ImageFolder
from imgrec.data.folder import FileKeys, ImageFiles
from imgrec.data.folder_classes import new_classes
from imgrec.data.image_data import ImageData, Splits
from imgrec.data.image_set import ImageSet
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import ConfigError, DataError, first_names, plural
from imgrec.files import on_progress

DECODED_AT_ONCE = 256  # images


class ExtendedFolder(ImageFolder):
    """A folder with more classes, behind those of another data set, whose splits come first and stay as they are.

    old: the node of that data set; None: only the folder's images are used. old_classes: its class names. The folder may
    have images of old classes too. Where the other set is in memory, the folder is read into it, in pixels of that set.
    """

    least_classes = 1

    def __init__(
        self,
        *,
        old: dict[str, Any] | None,
        old_classes: list[str] | None,
        root: str,
        label_from: str | None,
        group_from: str | None,
        skip_list: str | None,
        **keys: Unpack[FileKeys],
    ) -> None:
        super().__init__(root=root, label_from=label_from, group_from=group_from, skip_list=skip_list, **keys)
        self.old, self.old_classes = old, tuple(old_classes or ())

    def read(self) -> Splits:
        folder = super().read()
        new = new_classes(self.root, self.old_classes, folder.classes, old_images=self.old is not None)
        classes = (*self.old_classes, *new)
        train, val = folder.train, folder.val
        assert isinstance(train, ImageFiles)
        if val is None:
            train, val = self.cut(train, folder.classes, "val", self.val_share)
        places = np.array([classes.index(name) for name in folder.classes])
        old = None if self.old is None else self._old_data(self.old).splits
        joined = [
            _joined(None if old is None else images, more, places)
            for images, more in zip(old[1:4] if old else (None, None, None), (train, val, folder.test), strict=True)
        ]
        self.in_memory = isinstance(joined[0], InMemoryImages)
        assert joined[0] is not None, "there is a folder"
        return Splits(classes, joined[0], joined[1], joined[2], folder.unlabelled)

    def _old_data(self, node: dict[str, Any]) -> ImageData:
        data = build("data", node, ImageData)
        if data.classes != self.old_classes:
            raise DataError(
                f"the run's data has {plural(len(data.classes), 'class', 'es')} now ({first_names(data.classes, 3)}), and the run "
                f"{len(self.old_classes)} ({first_names(self.old_classes, 3)}). Restore its folders, or set old_images=false."
            )
        return data


def _joined(old: ImageSet | None, more: ImageSet | None, places: Indices) -> ImageSet | None:
    """A split of both: the old images, then those of the folder, whose labels are `places`. One of them may be missing."""
    if more is None:
        return old
    assert isinstance(more, ImageFiles)
    labels = places[more.labels]
    if isinstance(old, InMemoryImages):
        return _in_memory(old, more, labels)
    if old is None:
        return _files([(more, labels)], more)
    if type(old) is not ImageFiles:
        raise ConfigError(
            f"the run's data is read as {type(old).__name__}, which no folder can be joined to. "
            "Set old_images=false, and put some of its images into data.root=FOLDER."
        )
    return _files([(old, old.labels), (more, labels)], more)


def _files(parts: list[tuple[ImageFiles, Indices]], like: ImageFiles) -> ImageFiles:
    """By their whole paths, as the parts lie below different folders."""
    names = [_paths(images) for images, _ in parts]
    groups = [name if images.groups is None else images.groups for name, (images, _) in zip(names, parts, strict=True)]
    grouped = any(images.groups is not None for images, _ in parts)
    labels = np.concatenate([labels for _, labels in parts])
    return ImageFiles(
        "",
        np.concatenate(names),
        labels,
        preprocessing=like.preprocessing,
        groups=np.concatenate(groups) if grouped else None,
        **like.reading,
    )


def _paths(images: ImageFiles) -> NDArray[np.bytes_]:
    whole = np.char.add(os.fsencode(os.path.join(images.root, "")), images.names)
    return np.where(np.char.startswith(images.names, b"/"), images.names, whole)


def _in_memory(old: InMemoryImages, more: ImageFiles, labels: Indices) -> InMemoryImages:
    """Files are decoded at the native size of the old images, so that the device treats all of them alike."""
    height, width = old.images.shape[-2:]
    if height != width:
        raise ConfigError(f"the run's data has images of {height}x{width} pixels in memory, not square. Set old_images=false.")
    parts, bad = [old.images], 0
    for start in range(0, len(more), DECODED_AT_ONCE):
        rows = np.arange(start, min(start + DECODED_AT_ONCE, len(more)))
        batch = more[Request(epoch=0, indices=rows, whole=len(rows), side=height)]
        bad += len(batch.bad)
        parts.append(batch.images)
        on_progress.get()("decoding images", len(rows), len(more))
    if bad:
        raise ConfigError("data.on_bad_image=skip: images that are held in memory are not skipped. Remove them.")
    return InMemoryImages(torch.cat(parts), np.concatenate([old.labels, labels]))
