"""A network of depthwise separable convolutions."""

from itertools import pairwise

from torch import Tensor, nn


class SeparableNet(nn.Module):
    """Float [B, channels, H, W] -> logits [B, num_classes].

    One stage for each of `widths`: a depthwise 3x3 and a pointwise convolution (Howard 2017, MobileNets); each but the first halves the size.
    """

    def __init__(self, *, num_classes: int, channels: int, widths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, (inputs, width) in enumerate(pairwise([channels, *widths])):
            layers += [
                nn.Conv2d(inputs, inputs, 3, stride=1 if stage == 0 else 2, padding=1, groups=inputs, bias=False),
                nn.Conv2d(inputs, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits
