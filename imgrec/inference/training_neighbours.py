"""The training images that a network finds most like others: "it looks like these"."""

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imgrec.analysis.neighbours import find_nearest
from imgrec.data.batch import Request
from imgrec.data.folder import ImageFiles, announced
from imgrec.data.image_set import ImageSet, read_again
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.loader import Loader, worker_count
from imgrec.distributed.world import read_world
from imgrec.files import on_progress
from imgrec.inference.predictor import Predictor


class Neighbour(NamedTuple):
    """A training image that is near."""

    image: Tensor  # uint8 [C, S, S]
    name: str  # the path, or "image 17" of a set in memory
    label: int
    distance: float  # cosine distance of the features


def training_neighbours(
    predictor: Predictor, images: Tensor, train: ImageSet, k: int, *, batch_size: int, num_workers: int | Literal["auto"]
) -> list[list[Neighbour]]:
    """The k nearest of the training images for each of uint8 [B, C, S, S], by the cosine distance of what the head gets.

    Those that cannot be read are left out, where the run left them out.
    """
    places: list[Tensor] = []
    features = _features(predictor, train, places, batch_size, num_workers)
    found = find_nearest(predictor.embed(images, batch_size=batch_size), features, k)
    rows = torch.cat(places)[found.rows].numpy()
    wanted = np.unique(rows)
    pictures = dict(zip(wanted.tolist(), read_again(train, wanted), strict=True))
    return [
        [Neighbour(pictures[row], _name(train, row), int(train.labels[row]), float(distance)) for row, distance in zip(*own, strict=True)]
        for own in zip(rows.tolist(), found.distances.tolist(), strict=True)
    ]  # fmt: skip


def _features(
    predictor: Predictor, train: ImageSet, places: list[Tensor], batch_size: int, num_workers: int | Literal["auto"]
) -> Iterator[Tensor]:
    """float [B, D] of the images, batch after batch; which they are is appended to `places`."""
    rows = [np.arange(start, min(start + batch_size, len(train))) for start in range(0, len(train), batch_size)]
    requests = [Request(0, part, len(part)) for part in rows]
    workers = worker_count(num_workers, in_memory=isinstance(train, InMemoryImages), processes_here=read_world().local_size)
    on_gpu = predictor.device.type == "cuda"
    with closing(Loader(train, announced(train, requests), num_workers=workers, for_gpu=on_gpu)) as batches:
        for batch in batches:
            on_progress.get()("training images", len(batch.labels) + len(batch.bad), len(train))
            if len(batch.labels):
                places.append(batch.indices.clone())
                yield predictor.embed(batch.images, batch_size=batch_size)


def _name(images: ImageSet, row: int) -> str:
    if images.names is None:
        return f"image {row}"
    root = images.root if isinstance(images, ImageFiles) else ""
    return os.path.join(root, os.fsdecode(images.names[row]))
