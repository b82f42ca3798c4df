"""The network of the CIFAR-10 speed records: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498)."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgrec.models.views import mean_logits

IMAGES_AT_ONCE = 32  # whose patches are looked at: of 224 pixels and in colour they take 150 MB


class SpeedCNN(nn.Module):
    """Float [B, channels, H, W] of 16 pixels or more a side -> logits [B, num_classes].

    Its first layer is set from the images of a training, to whiten patches of 2x2, and only its bias is trained.
    widths: channels of the three groups. scale: of the logits. flip_in_evaluation: in evaluation the logits are the mean
    over the image and its mirror image, which costs a second pass.
    """

    def __init__(self, *, num_classes: int, channels: int, widths: list[int], scale: float, flip_in_evaluation: bool) -> None:
        super().__init__()
        self.scale, self.flip_in_evaluation = scale, flip_in_evaluation
        whitening = Whitening(channels)
        self.features = nn.Sequential(
            whitening, nn.GELU(), *(_group(inputs, outputs) for inputs, outputs in pairwise([len(whitening.bias), *widths]))
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.flip_in_evaluation:
            return self._logits(x)
        return mean_logits(self._logits, [x, x.flip(-1)])

    def set_from_images(self, batches: Iterable[Tensor]) -> None:
        """Before a training starts: its first images, float [B, channels, H, W] as the network sees them."""
        whitening = self.features[0]
        assert isinstance(whitening, Whitening)
        whitening.set_from_images(batches)

    def _logits(self, x: Tensor) -> Tensor:
        # Not amax: its gradient compares the features with their maximum, which compiled code has rounded to bfloat16.
        largest = self.features(x).flatten(2).max(2).values
        logits: Tensor = self.head(largest) * self.scale
        return logits


class Whitening(nn.Module):
    """Float [B, C, H, W] -> [B, 8 C, H - 1, W - 1]: patches of 2x2 along the principal axes of those of the training images,
    each at variance 1, and their negatives. Until it is set from images, the values of a patch and their negatives."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        values = channels * 2 * 2
        self.register_buffer("weight", _filters(torch.eye(values), channels))  # not trained
        self.bias = nn.Parameter(torch.zeros(2 * values))

    def set_from_images(self, batches: Iterable[Tensor], eps: float = 5e-4) -> None:
        """eps: added to the variances, as those of some axes are near 0."""
        moments, count = torch.zeros(len(self.bias) // 2, len(self.bias) // 2, dtype=torch.float64), 0
        for images in (part for batch in batches for part in torch.split(batch, IMAGES_AT_ONCE)):
            patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()  # [patches, values]
            moments += patches.T @ patches
            count += len(patches)
        variances, axes = torch.linalg.eigh(moments / count)
        self.weight.copy_(_filters(axes.T / (variances + eps).sqrt()[:, None], self.weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def _filters(axes: Tensor, channels: int) -> Tensor:
    """[values, values], an axis in each row -> kernels [2 values, channels, 2, 2]."""
    return torch.cat((axes, -axes)).view(-1, channels, 2, 2)


def _group(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(inputs, outputs), nn.MaxPool2d(2), _norm(outputs), nn.GELU(), _conv(outputs, outputs), _norm(outputs), nn.GELU()
    )


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Its first filters hand their input on: the network begins as a shallow one (Zagoruyko 2017, arXiv 1706.00388)."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, momentum=0.4)  # in few steps the weights of early ones are far from the last
