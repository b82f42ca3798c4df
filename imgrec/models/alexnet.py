"""AlexNet as torchvision has it: Krizhevsky 2014, "One weird trick for parallelizing ..." (arXiv 1404.5997)."""

import torchvision
from torch import nn

from imgrec.config.named_values import FirstLayers
from imgrec.models.channels import set_channels


def alexnet(*, num_classes: int, channels: int, stem: FirstLayers, dropout: float) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes]; stem "imagenet" is torchvision's network (63 pixels and more).

    stem "small": the first convolution is 5x5 stride 1 as in Krizhevsky's CIFAR networks, and 15 pixels are enough.
    """
    net = torchvision.models.alexnet(num_classes=num_classes, dropout=dropout)
    if stem == "small":
        net.features[0] = nn.Conv2d(3, 64, 5, padding=2)
    return set_channels(net, channels)
