"""GoogLeNet: Szegedy et al. 2014, "Going deeper with convolutions" (arXiv 1409.4842), torchvision's."""

import torchvision
from torch import nn

from imgrec.config.named_values import FirstLayers
from imgrec.models.channels import set_channels


def googlenet(*, num_classes: int, channels: int, stem: FirstLayers, dropout: float) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes]; without the auxiliary classifiers, in training too.

    stem "imagenet" is torchvision's network (15 pixels and more, made for 224); "small": 3x3 stride 1, no first pooling.
    """
    # init_weights=True is torchvision's default, but its constructor warns when it is left out.
    net = torchvision.models.googlenet(num_classes=num_classes, aux_logits=False, init_weights=True, dropout=dropout)
    if stem == "small":
        net.conv1.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.conv.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool1 = nn.Identity()
    return set_channels(net, channels)
