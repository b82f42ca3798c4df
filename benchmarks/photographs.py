"""A folder of photographs to measure with, out of the two that scikit-learn brings; and how far one picture is from another."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 500, 375  # of most of ImageNet


def make_photographs(root: Path, *, images: int = 600, seed: int = 0) -> None:
    """ROOT/CLASS/*.jpg: windows of the photographs, of 77 KB on average."""
    rng = np.random.default_rng(seed)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        photograph = Image.fromarray(pixels)
        for number in range(images // 2):
            width = int(rng.integers(400, photograph.width + 1))
            height = width * HEIGHT // WIDTH
            left, top = rng.integers(0, photograph.width - width + 1), rng.integers(0, max(1, photograph.height - height + 1))
            window = photograph.resize(
                (WIDTH, HEIGHT), Image.Resampling.LANCZOS, (left, top, left + width, min(top + height, photograph.height))
            )
            window.save(root / name / f"{number:04}.jpg", quality=95)


def decibel(ours: ArrayLike, theirs: ArrayLike) -> float:
    """The peak signal-to-noise ratio of two pictures of values up to 255."""
    error = np.square(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).mean()
    return float(10 * np.log10(255**2 / max(1e-9, error)))
