"""The network of the CIFAR-10 speed records: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498)."""

from itertools import pairwise

from torch import Tensor, nn


class SpeedCNN(nn.Module):
    """Float [B, channels, H, W] of 16 pixels or more a side -> logits [B, num_classes].

    Its first convolution, 2x2, is trained here; the records set it from the data, to whiten patches.
    widths: channels of the three groups. scale: of the logits. flip_in_evaluation: in evaluation the logits are the mean
    over the image and its mirror image, which costs a second pass.
    """

    def __init__(self, *, num_classes: int, channels: int, widths: list[int], scale: float, flip_in_evaluation: bool) -> None:
        super().__init__()
        self.scale, self.flip_in_evaluation = scale, flip_in_evaluation
        first = 8 * channels  # as many filters as whitening has: each patch value and its negative
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 2),
            nn.GELU(),
            *(_group(inputs, outputs) for inputs, outputs in pairwise([first, *widths])),
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.flip_in_evaluation:
            return self._logits(x)
        return (self._logits(x) + self._logits(x.flip(-1))) / 2

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).amax((2, 3))) * self.scale
        return logits


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
