"""DenseNet: Huang et al. 2016, "Densely connected convolutional networks" (arXiv 1608.06993), torchvision's."""

import torchvision
from torch import nn

from imgrec.config.named_values import DenseNetDepth, FirstLayers
from imgrec.models.channels import set_channels


def densenet(
    *,
    num_classes: int,
    channels: int,
    depth: DenseNetDepth,
    stem: FirstLayers,
    dropout: float,
    memory_efficient: bool,
) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes].

    stem "imagenet" is torchvision's network (29 pixels and more); "small": 3x3 stride 1, no pooling, as in the paper for
    CIFAR. dropout: share of each dense layer's output. memory_efficient: activation checkpointing, slower.
    """
    settings = {"num_classes": num_classes, "drop_rate": dropout, "memory_efficient": memory_efficient}
    net = torchvision.models.get_model(f"densenet{depth}", **settings)
    if stem == "small":
        net.features.conv0 = nn.Conv2d(3, net.features.conv0.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.features.conv0.weight)
        net.features.pool0 = nn.Identity()
    return set_channels(net, channels)
