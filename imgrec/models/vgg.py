"""VGG: Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition" (arXiv 1409.1556)."""

from typing import Literal

import torch
from torch import Tensor, nn

from imgrec.models.checks import check_option

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions per stage
_WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = tuple(_STAGES)


class VGG(nn.Module):
    """Float [B, channels, H, W] -> logits [B, num_classes].

    With `head="imagenet"` (7x7 features, 4096-4096-num_classes) module names, initial weights and outputs are torchvision's
    (torchvision/models/vgg.py), and it needs 32 pixels. `head="small"` (1x1 features, 512-num_classes) has 25 times fewer
    parameters and takes pictures of any size: its poolings round up, which changes nothing for multiples of 32.

    dropout: share of the head's hidden values set to zero while training. Raises ConfigError for another depth.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        depth: int,
        batch_norm: bool,
        head: Literal["imagenet", "small"],
        dropout: float,
    ) -> None:
        super().__init__()
        check_option("model.depth", depth, DEPTHS)
        check_option("model.head", head, ("imagenet", "small"))
        layers: list[nn.Module] = []
        inputs = channels
        for width, convs in zip(_WIDTHS, _STAGES[depth], strict=True):
            for _ in range(convs):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=head == "small"))
        self.features = nn.Sequential(*layers)
        if head == "imagenet":
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, num_classes),
            )
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(
                nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(512, num_classes)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                if head == "small":  # a deviation of 0.01 suits 25088 inputs; from 512 it would shrink the signal six times
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits
