"""A split in memory as one uint8 tensor: a batch is one index_select, without Python for each image."""

import zlib

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Indices, Request
from imgrec.data.mixup import partners
from imgrec.errors import DataError


class InMemoryImages:
    """images: uint8 [N, C, H, W] at their native size (the device resizes); labels: int64 [N]."""

    names = groups = None

    def __init__(self, images: Tensor, labels: Indices, *, augment: Augment | None = None, seed: int = 0) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise DataError(
                f"a split in memory has images {str(images.dtype).removeprefix('torch.')} {list(images.shape)} and {len(labels)} labels: "
                "expected uint8 [N, C, H, W], with values from 0 to 255, and N labels. Convert them in `read`."
            )
        self.images, self.labels, self.augment, self.seed = images, np.asarray(labels, dtype=np.int64), augment, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, request: Request) -> Batch:
        rows = request.indices % len(self)
        images = self.images.index_select(0, torch.from_numpy(rows))
        if self.augment is not None:
            height, width = images.shape[-2:]
            for image, index in zip(images, request.indices.tolist(), strict=True):
                box = self.augment.crop_box(height, width, seed=self.seed, epoch=request.epoch, index=index)
                cropped = image if box is None else F.resized_crop(image, *box, [height, width])
                image.copy_(self.augment.sample(cropped, seed=self.seed, epoch=request.epoch, index=index))
        labels = torch.from_numpy(self.labels[rows])
        partner_rows = torch.from_numpy(partners(np.arange(len(rows)), len(rows)))
        return Batch(images, labels, torch.from_numpy(request.indices), partner_rows, request.epoch, request.whole)

    def take(self, rows: Indices) -> "InMemoryImages":
        images = self.images.index_select(0, torch.from_numpy(rows))
        return InMemoryImages(images, self.labels[rows], augment=self.augment, seed=self.seed)

    def content(self) -> Indices:
        return np.array([[zlib.crc32(self.images.contiguous().numpy().data)]])

    def for_training(self, augment: Augment | None, seed: int) -> "InMemoryImages":
        augment = augment if augment is not None and augment.needs_samples else None
        return InMemoryImages(self.images, self.labels, augment=augment, seed=seed)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 [N, C, H, W] with 1 or 3 channels -> `channels`: gray is repeated, colour becomes luma (ITU-R 601)."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    # In parts: the weighted sum of all images at once would need 12 times their memory.
    return torch.cat([F.rgb_to_grayscale(part) for part in torch.split(images, 4096)])
