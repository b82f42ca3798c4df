"""What happens to uint8 images on the device, equal in training, evaluation and prediction."""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

CACHED_VALUES = 2**17  # of a batch, converted at once on the CPU: as floats they stay in the second-level cache of a core


class Preprocess(nn.Module):
    """uint8 [B, C, H, W] of any size -> normalised float [B, C, image_size, image_size]."""

    mean: Tensor
    std: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, *, image_size: int, mean: list[float], std: list[float], interpolation: str) -> None:
        super().__init__()
        self.image_size, self.interpolation = image_size, InterpolationMode(interpolation)
        exact_mean, exact_std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        buffers = {"mean": exact_mean, "std": exact_std, "scale": 1 / (255 * exact_std), "offset": -exact_mean / exact_std}
        for name, values in buffers.items():  # not in the state dict: they are in the config, which is in every checkpoint
            self.register_buffer(name, values.float(), persistent=False)

    def resize(self, images: Tensor, side: int | None = None) -> Tensor:
        """uint8 [B, C, H, W] at `side`, or image_size; on the device, to which one byte per value is copied."""
        size = [side or self.image_size] * 2
        if list(images.shape[-2:]) == size:
            return images
        resized: Tensor = F.resize(images, size, self.interpolation)
        return resized

    def normalize(self, images: Tensor) -> Tensor:
        """(x - mean) / std per channel of [B, C, H, W]: uint8, x from 0 to 255 for 0 to 1, or float in [0, 1]."""
        if images.dtype != torch.uint8:
            return (images - self.mean) / self.std
        if images.device.type == "cpu":
            return self._normalize_in_parts(images)
        return torch.addcmul(self.offset, images.to(self.scale.dtype), self.scale)

    def _normalize_in_parts(self, images: Tensor) -> Tensor:
        """Parts that stay in the cache for all three operations: a fifth of the time for 64 images of 224x224."""
        floats = torch.empty_like(images, dtype=self.scale.dtype)
        rows = max(1, CACHED_VALUES // max(1, images[:1].numel()))
        scale, offset = self.scale, self.offset
        inputs, outputs = images, floats
        if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
            # By rows of pixels: a loop over the three values of one pixel has no vector instructions.
            inputs, outputs = (x.permute(0, 2, 3, 1).flatten(2) for x in (images, floats))
            scale, offset = (x.flatten().repeat(images.shape[3]) for x in (scale, offset))
        for first in range(0, len(inputs), rows):
            part = slice(first, first + rows)
            outputs[part].copy_(inputs[part]).mul_(scale).add_(offset)
        return floats

    def forward(self, images: Tensor) -> Tensor:
        return self.normalize(self.resize(images))
