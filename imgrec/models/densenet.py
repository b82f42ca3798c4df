"""DenseNet: Huang et al. 2016, "Densely connected convolutional networks" (arXiv 1608.06993), torchvision's."""

from typing import Literal

import torchvision
from torch import nn

from imgrec.models.channels import set_channels


def densenet(
    *,
    num_classes: int,
    channels: int,
    depth: Literal[121, 161, 169, 201],
    stem: Literal["imagenet", "small"],
    dropout: float,
    memory_efficient: bool,
) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes].

    stem "imagenet" is torchvision's network (29 pixels and more); "small": 3x3 stride 1, no pooling (the paper's
    networks for CIFAR).
    dropout: share of each dense layer's output. memory_efficient: activation checkpointing: less memory, slower.
    """
    net: nn.Module = torchvision.models.get_model(
        f"densenet{depth}", num_classes=num_classes, drop_rate=dropout, memory_efficient=memory_efficient
    )
    if stem == "small":
        features = net.get_submodule("features")
        width = net.get_submodule("features.norm0").num_features
        assert isinstance(width, int)
        conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        features.add_module("conv0", conv)  # replaces the module of this name
        features.add_module("pool0", nn.Identity())
    set_channels(net, channels)
    return net
