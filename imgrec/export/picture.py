"""The picture that an exported file carries, with which anybody can see whether a runtime resizes and computes as PyTorch does."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from imgrec.export.classifier import WholeClassifier

CANDIDATES = 24
COLOURS = 4  # patches of two colours, along both sides of a picture


class Probe(NamedTuple):
    """image: uint8 [1, H, W, C]; outputs: what PyTorch gives for it, by name; sensitivity: how far a probability moves where
    the resize leaves antialiasing out.
    """

    image: NDArray[np.uint8]
    outputs: dict[str, Tensor]
    sensitivity: float


def choose_picture(classifier: WholeClassifier) -> Probe:
    """Of stripes and checks, which alias most, those that move this network most where they are resized without antialiasing."""
    candidates = torch.from_numpy(patterns(classifier.fit.size, classifier.preprocess.mean.numel()))
    with torch.inference_mode():
        apart = torch.cat([_aliasing(classifier, picture[None]) for picture in candidates])
        image = candidates[apart.argmax()][None]
        answer = classifier(image)
    outputs = dict(zip(classifier.outputs, (answer,) if isinstance(answer, Tensor) else answer, strict=True))
    return Probe(image.numpy(), outputs, float(apart.max()))


def patterns(size: int, channels: int) -> NDArray[np.uint8]:
    """uint8 [CANDIDATES, H, W, channels], a good two times `size` high and three times wide: stripes of a few pixels in patches of colour.

    Always the same ones, and few bytes when compressed.
    """
    height, width = 2 * size + 3, 3 * size + 1
    y, x = np.mgrid[:height, :width]
    numbers = np.random.default_rng(0)
    pictures = np.empty((CANDIDATES, height, width, channels), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        period = 2 + number // 4 % 3
        stripes = ((x, y, x + y, x // period + y // period)[number % 4] // (period if number % 4 < 3 else 1)) % 2
        colours = numbers.integers(0, 256, (2, COLOURS, COLOURS, channels))
        picture[:] = colours[stripes, y * COLOURS // height, x * COLOURS // width]
    return pictures


def aliased(classifier: WholeClassifier, images: Tensor) -> Tensor:
    """What `classifier.fit` would give of a runtime without antialiasing."""
    fit = classifier.fit
    height, width = images.shape[1:3]
    shortest = fit.shortest
    sides = [fit.size] * 2 if shortest is None else [shortest * side // min(height, width) for side in (height, width)]
    mode = "bicubic" if fit.cubic else "bilinear"
    pixels = F.interpolate(images.movedim(-1, 1).float(), sides, mode=mode, align_corners=False).round().clamp(0, 255)
    top, left = (round((side - fit.size) / 2) for side in sides)
    return pixels[..., top : top + fit.size, left : left + fit.size]


def _aliasing(classifier: WholeClassifier, images: Tensor) -> Tensor:
    """float32 [B], how far a probability of each image moves."""
    answers = [classifier.answer(pixels) for pixels in (classifier.fit(images), aliased(classifier, images))]
    right, wrong = (answer if isinstance(answer, Tensor) else answer[0] for answer in answers)
    return (right - wrong).abs().amax(1)
