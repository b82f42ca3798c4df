"""Whether unreadable images that are skipped leave enough of a data set, found out before the first step."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imgrec.data.batch import Request
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.errors import DataError

AT_ONCE = 16  # images that a thread reads into one batch


def check_readable(data: ImageData) -> None:
    """DataError where no image of a class of a split can be read, or none of the split.

    Reads one image of each class, and more only while they are unreadable. Where these are not skipped nothing is read, as
    the first of them is an error then.
    """
    for name in ("train", "val", "test"):
        images = getattr(data.splits, name)
        if isinstance(images, ImageFiles):
            images = images.for_training(None, 0) if name == "train" else images
            if images.skips:
                _check_split(images, name, data.classes)


def _check_split(images: ImageFiles, split: str, classes: tuple[str, ...]) -> None:
    order = np.argsort(images.labels, kind="stable")
    present, first, counts = np.unique(images.labels[order], return_index=True, return_counts=True)
    read = np.zeros(len(present), dtype=bool)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-readable") as pool:
        for tried in range(counts.max()):
            pending = np.flatnonzero(~read & (tried < counts))
            parts = np.split(order[first[pending] + tried], range(AT_ONCE, len(pending), AT_ONCE))
            for batch in pool.map(images.__getitem__, [Request(0, part, len(part)) for part in parts]):
                read |= np.isin(present, batch.labels.numpy())
            if (read | (counts <= tried + 1)).all():
                break
    if read.all():
        return
    lost = np.flatnonzero(~read)[0]
    what = f"the {counts[lost]:,} images of class {classes[present[lost]]} in" if read.any() else f"the {len(images):,} images of"
    example = images.path(int(order[first[lost]]))
    raise DataError(
        f"{example}: none of {what} the {split} split can be read, and unreadable images are skipped. "
        "Replace them, or remove their folder."
    )
