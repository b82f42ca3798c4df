"""What images may be divided by: facts of their files and pixels, and columns of a table."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imgrec.analysis.slices import Slice, Slicing, measure_slices, slice_column, slice_numbers, slice_texts
from imgrec.data.batch import Batch, Indices
from imgrec.data.decoded import image_sizes
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.table import ImageTable
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import ConfigError
from imgrec.files import FORMAT_OF, file_extension
from imgrec.inference.slice_names import BRIGHTNESS, FACTS_OF_IMAGES, SIZE, TYPE, no_slices
from imgrec.inference.split_predictions import SplitPredictions, gather_columns


class Sliced(NamedTuple):
    """The slices, and how the images were divided into them: also in ways that gave a single one."""

    slices: list[Slice]
    slicings: list[Slicing]


class BrightnessCollector:
    """The mean pixel of each image that this rank has measured, from 0 to 255: as the network sees it, before normalisation."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []

    def update(self, batch: Batch) -> None:
        pixels = max(1, batch.images[:1].numel())
        self._batches.append((batch.indices, batch.images.sum((1, 2, 3)) / pixels))

    def gather(self, group: WorkerGroup) -> NDArray[np.float64] | None:
        """Of all ranks in the split's order on rank 0, None on the others; all must call it."""
        columns = gather_columns(self._batches, group)
        return None if columns is None else columns[1].astype(np.float64)


def read_slice_columns(by: Sequence[str], images: ImageSet, data: ImageData | None) -> dict[str, list[str]]:
    """The texts [N] of those of `by` that are columns of the data's table; ConfigError for one that the images do not have."""
    columns: dict[str, list[str]] = {}
    for name in by:
        if name == TYPE and images.names is None:
            raise ConfigError(f"by={name}: these images are no files. Set by={BRIGHTNESS}.")
        if name == SIZE and not isinstance(images, ImageFiles | InMemoryImages):
            raise ConfigError(f"by={name}: the stored size of these images is not known. Set by={BRIGHTNESS}.")
        if name in FACTS_OF_IMAGES:
            continue
        if not isinstance(data, ImageTable) or not isinstance(images, ImageFiles):
            raise no_slices(name)
        columns[name] = data.column_of(name, images)
    return columns


def slice_images(
    by: Sequence[str],
    images: ImageSet,
    predictions: SplitPredictions,
    brightness: NDArray[np.float64] | None,
    columns: Mapping[str, list[str]],
) -> Sliced:
    """The accuracy on slices of the images of a split. brightness: of those predicted; columns: of `read_slice_columns`."""
    rows = predictions.indices
    slicings = [_slicing(name, images, rows, brightness, columns) for name in by]
    return Sliced(measure_slices(slicings, predictions.predicted == images.labels[rows]), slicings)


def _slicing(
    name: str, images: ImageSet, rows: Indices, brightness: NDArray[np.float64] | None, columns: Mapping[str, list[str]]
) -> Slicing:
    if name == BRIGHTNESS:
        assert brightness is not None
        return slice_numbers(name, brightness.round(1))
    if name == SIZE:
        return slice_numbers(name, _pixels(images, rows), unit=" pixels")
    if name == TYPE:
        assert images.names is not None
        extensions = [file_extension(os.fsdecode(each)) for each in images.names[rows].tolist()]
        return slice_texts(name, [FORMAT_OF.get(extension, extension) for extension in extensions])
    return slice_column(name, [columns[name][row] for row in rows.tolist()])


def _pixels(images: ImageSet, rows: Indices) -> NDArray[np.float64]:
    """Width times height of each image as it is stored; NaN where it is not known."""
    if isinstance(images, InMemoryImages):
        return np.full(len(rows), float(images.images.shape[2] * images.images.shape[3]))
    assert isinstance(images, ImageFiles)
    chosen = images.take(rows)
    sizes = image_sizes(chosen.open, len(chosen)).astype(np.float64)
    return np.where(sizes > 0, sizes, np.nan)
