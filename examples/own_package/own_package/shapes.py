"""Drawn discs, squares and triangles. `python -m own_package.shapes FOLDER` writes some as FOLDER/CLASS/*.png."""

import sys
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imgrec.data.image_data import Common, ImageData, Splits
from imgrec.data.in_memory import InMemoryImages, to_channels
from imgrec.errors import ConfigError

CLASSES = ("disc", "square", "triangle")


class Shapes(ImageData):
    """Bright shapes of any size and place on a dark, noisy ground, as many of each class as of the others."""

    def __init__(self, *, train_samples: int, test_samples: int, noise: float, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if not 0 <= noise < 100:
            raise ConfigError(f"data.noise={noise}: noise must be 0 or more and less than 100. Set data.noise=20.")
        self.train_samples, self.test_samples, self.noise = train_samples, test_samples, noise

    def read(self) -> Splits:
        random = np.random.default_rng(self.split_seed)
        size, channels = self.preprocessing()["image_size"], self.preprocessing()["channels"]

        def images(count: int) -> InMemoryImages:
            labels = np.arange(count) % len(CLASSES)
            drawn = np.stack([draw(CLASSES[label], size, self.noise, random) for label in labels])
            return InMemoryImages(to_channels(torch.from_numpy(drawn)[:, None], channels), labels)

        return Splits(CLASSES, train=images(self.train_samples), val=None, test=images(self.test_samples))


def draw(name: str, size: int, noise: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """One gray picture [size, size]."""
    radius = random.uniform(0.2, 0.4) * size
    x, y = random.uniform(radius, size - radius, 2)
    across, down = np.meshgrid(np.arange(size) + 0.5 - x, np.arange(size) + 0.5 - y)
    inside = {
        "disc": across**2 + down**2 < radius**2,
        "square": np.maximum(abs(across), abs(down)) < radius,
        "triangle": (abs(down) < radius) & (2 * abs(across) < down + radius),
    }[name]
    pixels = np.where(inside, 180, 60) + random.normal(0, noise, (size, size))
    return pixels.clip(0, 255).astype(np.uint8)


def main(folder: Path, count: int = 10, size: int = 24) -> None:
    """FOLDER/CLASS/0.png and so on, other ones than in the data set."""
    random = np.random.default_rng(1)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(draw(name, size, 20, random)).save(folder / name / f"{number}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
