"""Whether an exported file answers as the network in PyTorch does, on every image of the run's validation split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.analysis.prediction_sets import FloatArray
from imgrec.config.schema import Node, Split
from imgrec.data.batch import Request
from imgrec.data.decode import fit_to_size
from imgrec.data.folder import ImageFiles
from imgrec.data.image_set import ImageSet
from imgrec.data.torch_dataset import DatasetImages
from imgrec.errors import ConfigError, DataError, ImgrecError, first_line
from imgrec.files import on_progress
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.predictor import Predictor

MOST_APART = 1e-4  # of a probability
TIE = 1e-5  # two classes whose probabilities are no further apart may change places
TOGETHER = 64  # images, read and compared together


FileAnswer = Callable[[NDArray[np.uint8]], FloatArray]  # uint8 [B, H, W, C] -> float32 [B, K], of an exported file


@dataclass(frozen=True)
class Agreement:
    """images: compared; same_class: have the same most probable class; ties: have another that PyTorch finds as probable;
    difference: the largest of a probability.
    """

    images: int
    same_class: int
    ties: int
    difference: float

    def joined(self, other: "Agreement") -> "Agreement":
        """Of the images of both."""
        counts = (self.images + other.images, self.same_class + other.same_class, self.ties + other.ties)
        return Agreement(*counts, max(self.difference, other.difference))

    def __str__(self) -> str:
        """'the class of PyTorch for 200 of 200 images, largest difference of a probability 3e-07'."""
        tied = f" and as probable a one for {self.ties:,}" if self.ties else ""
        return f"the class of PyTorch for {self.same_class:,} of {self.images:,} images{tied}, largest difference of a probability {self.difference:.2g}"


def run_images(checkpoint: Checkpoint, split: Split, changes: Node) -> ImageSet:
    """A split of the run; ConfigError, which says what to type, where its images are not there any more."""
    try:
        return evaluation_images(checkpoint, split=split, folder=None, changes=changes).images
    except ConfigError:
        raise
    except ImgrecError as error:
        key, use = ("check", "the file is compared with PyTorch") if split == "val" else ("int8", "8 bits are fitted")
        raise ConfigError(
            f"{key}=true: {use} on the run's images of {split}, which cannot be read: {first_line(error).partition('. ')[0]}. "
            f"Set data.root=FOLDER where they are now, or {key}=false."
        ) from error


def measure_agreement(predictor: Predictor, images: ImageSet, answer: FileAnswer) -> Agreement:
    """`answer` gets every image at its own size, as a user would give it, and the predictor what evaluation makes of it.

    Images of one size that follow one another are given together. With a bar (`imgrec.files.on_progress`).
    """
    total = Agreement(0, 0, 0, 0.0)
    for pictures in _in_parts(whole_images(images), TOGETHER):
        expected = predictor.probabilities(torch.stack([fit_to_size(picture, predictor.preprocessing) for picture in pictures]))
        batches = (list(group) for _, group in groupby(pictures, lambda picture: picture.shape))
        given = np.concatenate([answer(torch.stack(batch).movedim(1, -1).contiguous().numpy()) for batch in batches])
        total = total.joined(compare_answers(given, expected.numpy()))
        on_progress.get()("comparing with PyTorch", len(pictures), len(images))
    return total


def compare_answers(given: FloatArray, expected: FloatArray) -> Agreement:
    """Probabilities of a file and of PyTorch, float [B, K]."""
    apart = np.abs(given - expected)
    classes = given.argmax(axis=1)
    equal = classes == expected.argmax(axis=1)
    tied = expected.max(axis=1) - np.take_along_axis(expected, classes[:, None], axis=1)[:, 0] <= TIE
    difference = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    return Agreement(len(given), int(equal.sum()), int((tied & ~equal).sum()), difference)


def check_agreement(agreement: Agreement, out: object, tolerance: float = MOST_APART) -> None:
    """DataError unless each image has the same class, or a tie, and no probability differs by more than the tolerance."""
    if agreement.same_class + agreement.ties < agreement.images or not agreement.difference <= tolerance:
        raise DataError(
            f"{out} was not written: it gives {agreement}; allowed are all, and {tolerance:g}. Set check=false to write it all the same."
        )


def whole_images(images: ImageSet) -> Iterator[Tensor]:
    """uint8 [C, H, W] of each image before it is resized; those that cannot be read are left out where the run leaves them out."""
    for row in range(len(images)):
        if isinstance(images, ImageFiles):
            try:
                yield images.decode(row)
            except DataError:
                if not images.skips:
                    raise
        elif isinstance(images, DatasetImages):
            yield images.read_image(row)
        else:
            yield from images[Request(0, np.array([row]), 1)].images


def _in_parts(pictures: Iterator[Tensor], most: int) -> Iterator[Sequence[Tensor]]:
    part: list[Tensor] = []
    for picture in pictures:
        part.append(picture)
        if len(part) == most:
            yield part
            part = []
    if part:
        yield part
