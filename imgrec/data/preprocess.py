"""What happens to uint8 images on the device, equal in training, evaluation and prediction."""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


class Preprocess(nn.Module):
    """uint8 [B, C, H, W] of any size -> normalised float [B, C, image_size, image_size]."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, image_size: int, mean: list[float], std: list[float], interpolation: str) -> None:
        super().__init__()
        self.image_size, self.interpolation = image_size, InterpolationMode(interpolation)
        # Not in the state dict: they are in the config, which is in every checkpoint.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def to_float(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float in [0, 1] at image_size; on the device, to which one byte per value is copied."""
        resized: Tensor = F.resize(images, [self.image_size, self.image_size], self.interpolation)
        return resized.to(self.mean.dtype).div_(255)

    def normalize(self, images: Tensor) -> Tensor:
        """(x - mean) / std per channel; float [B, C, H, W]."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.normalize(self.to_float(images))
