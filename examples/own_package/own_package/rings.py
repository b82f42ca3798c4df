"""A data set as most projects have one: a torch Dataset of (image, label)."""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


class Rings(Dataset[tuple[Image.Image, int]]):
    """Rings with a gap, by the side on which that is (Landolt C). Image i is the same each time it is asked for."""

    classes = ("right", "top", "left", "bottom")

    def __init__(self, *, count: int, seed: int, size: int) -> None:
        self.count, self.seed, self.size = count, seed, size
        self.targets = [index % len(self.classes) for index in range(count)]  # so that no image is drawn to find its label

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        random = np.random.default_rng([self.seed, index])
        across, up = np.meshgrid(*[np.arange(self.size) + 0.5 - self.size / 2 + random.uniform(-2, 2) for _ in range(2)])
        radius, quarters = np.hypot(across, up), np.arctan2(-up, across) / (np.pi / 2)
        away = (quarters - self.targets[index] + 2) % 4 - 2  # from the middle of the gap, in quarters of a turn
        ring = (abs(radius - self.size / 3) < 2) & (abs(away) > 0.3)
        pixels = np.where(ring, 180, 60) + random.normal(0, 20, ring.shape)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), self.targets[index]
