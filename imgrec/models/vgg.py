"""VGG: Simonyan and Zisserman 2014, "Very deep convolutional networks for ..." (arXiv 1409.1556), torchvision's."""

import torch
from torch import nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from imgrec.config.named_values import FirstLayers, VGGDepth
from imgrec.models.channels import set_channels
from imgrec.models.simple_cnn import he_init

_CONFIGURATIONS = {11: "A", 13: "B", 16: "D", 19: "E"}  # the columns of the paper's table 1


def vgg(
    *,
    num_classes: int,
    channels: int,
    depth: VGGDepth,
    batch_norm: bool,
    head: FirstLayers,
    dropout: float,
) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes].

    head "imagenet" (7x7 features, 4096-4096-num_classes) is torchvision's network and needs 32 pixels. "small" (1x1
    features, 512-num_classes) has 25 times fewer parameters and takes images of any size: its poolings round up, which
    changes nothing for multiples of 32. dropout: share of the head's hidden values.
    """
    features = make_layers(cfgs[_CONFIGURATIONS[depth]], batch_norm=batch_norm)
    if head == "imagenet":
        net = VGG(features, num_classes=num_classes, dropout=dropout)
    else:
        # torchvision's head has 120 million parameters and is replaced below: on meta it takes no time and no memory.
        with torch.device("meta"):
            net = VGG(features)
        for module in features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
        net.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Dropout(dropout)
        net.classifier = nn.Sequential(*hidden, nn.Linear(512, num_classes))
        # torchvision's standard deviation of 0.01 is for 25088 inputs; for 512 it would shrink the signal six times.
        he_init(net.classifier)
    return set_channels(net, channels)
