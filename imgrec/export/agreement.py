"""Whether an exported file answers as the network in PyTorch does, on every image of the run's validation split."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

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
from imgrec.inference.guarantee import Guarantee
from imgrec.inference.predictor import Predictor

MOST_APART = 1e-4  # of a probability
TIE = 1e-5  # two classes whose probabilities are no further apart may change places
TOGETHER = 64  # images, read and compared together


# uint8 [B, H, W, C] -> float32 [B, K], of an exported file, and its second output where it has one.
FileAnswer = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Agreement:
    """images: compared; same_class: have the same most probable class; ties: have another that PyTorch finds as probable;
    difference: the largest of a probability. Where there is a second output: same_promise: have the same set of classes, or
    are answered alike; promise_ties: are not, by a class whose probability is at its limit.
    """

    images: int
    same_class: int
    ties: int
    difference: float
    same_promise: int | None = None
    promise_ties: int | None = None

    def joined(self, other: "Agreement") -> "Agreement":
        """Of the images of both."""
        counts = (self.images + other.images, self.same_class + other.same_class, self.ties + other.ties)
        promises = (_sum(self.same_promise, other.same_promise), _sum(self.promise_ties, other.promise_ties))
        return Agreement(*counts, max(self.difference, other.difference), *promises)

    def __str__(self) -> str:
        """'the class of PyTorch for 200 of 200 images, largest difference of a probability 3e-07'."""
        tied = f" and as probable a one for {self.ties:,}" if self.ties else ""
        promised = ""
        if self.same_promise is not None:
            at_limit = f" and all but classes at their limit for {self.promise_ties:,}" if self.promise_ties else ""
            promised = f", its set or answer for {self.same_promise:,}{at_limit}"
        return (
            f"the class of PyTorch for {self.same_class:,} of {self.images:,} images{tied}{promised}, "
            f"largest difference of a probability {self.difference:.2g}"
        )


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


def measure_agreement(
    predictor: Predictor, images: ImageSet, answer: FileAnswer, guarantee: Guarantee | None = None
) -> Agreement:
    """`answer` gets every image at its own size, as a user would give it, and the predictor what evaluation makes of it.

    Images of one size that follow one another are given together. With a bar (`imgrec.files.on_progress`).
    """
    total: Agreement | None = None
    for pictures in _in_parts(whole_images(images), TOGETHER):
        expected = predictor.probabilities(torch.stack([fit_to_size(picture, predictor.preprocessing) for picture in pictures]))
        batches = (list(group) for _, group in groupby(pictures, lambda picture: picture.shape))
        given = [answer(torch.stack(batch).movedim(1, -1).contiguous().numpy()) for batch in batches]
        found = compare_answers([np.concatenate(parts) for parts in zip(*given, strict=True)], expected.numpy(), guarantee)
        total = found if total is None else total.joined(found)
        on_progress.get()("comparing with PyTorch", len(pictures), len(images))
    return total or Agreement(0, 0, 0, 0.0)


def compare_answers(given: Sequence[NDArray[Any]], expected: FloatArray, guarantee: Guarantee | None = None) -> Agreement:
    """The outputs of a file with the probabilities of PyTorch, float [B, K], and with what a guarantee makes of these."""
    probabilities = given[0]
    apart = np.abs(probabilities - expected)
    classes = probabilities.argmax(axis=1)
    equal = classes == expected.argmax(axis=1)
    tied = expected.max(axis=1) - np.take_along_axis(expected, classes[:, None], axis=1)[:, 0] <= TIE
    difference = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    found = Agreement(len(expected), int(equal.sum()), int((tied & ~equal).sum()), difference)
    if guarantee is None:
        return found
    differs = given[1] != guarantee.promised(expected)
    clear = differs & (np.abs(guarantee.distances(expected)) > TIE)
    differs, clear = (each.reshape(len(expected), -1).any(axis=1) for each in (differs, clear))
    return replace(found, same_promise=int((~differs).sum()), promise_ties=int((differs & ~clear).sum()))


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def check_agreement(agreement: Agreement, out: object, tolerance: float = MOST_APART) -> None:
    """DataError unless each image has the same class and set, or a tie, and no probability differs by more than the tolerance."""
    same = agreement.same_class + agreement.ties == agreement.images
    if agreement.same_promise is not None:
        same = same and agreement.same_promise + (agreement.promise_ties or 0) == agreement.images
    if not same or not agreement.difference <= tolerance:
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
