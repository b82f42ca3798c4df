"""ResNet: He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385)."""

import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from imgrec.config.named_values import FirstLayers, ResNetDepth
from imgrec.models.channels import set_channels

CIFAR_DEPTHS = (20, 32, 44, 56, 110)


def resnet(
    *,
    num_classes: int,
    channels: int,
    depth: ResNetDepth,
    stem: FirstLayers,
    zero_init_residual: bool,
) -> nn.Module:
    """Float [B, channels, H, W] -> logits [B, num_classes]; the ImageNet family (depth 18 to 152) or CIFAR's (20 to 110).

    stem: "imagenet" is 7x7 stride 2 and a pooling, together a quarter of the size; "small" is 3x3 stride 1. The
    ImageNet family with stem "imagenet" is torchvision's network.
    zero_init_residual: every block starts as the identity (Goyal et al. 2017, arXiv 1706.02677).
    """
    if depth in CIFAR_DEPTHS:
        return CifarResNet(num_classes, channels, depth, stem, zero_init_residual)
    net = torchvision.models.get_model(f"resnet{depth}", num_classes=num_classes, zero_init_residual=zero_init_residual)
    if stem == "small":
        net.conv1 = _he_init(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        net.maxpool = nn.Identity()
    return set_channels(net, channels)


class CifarResNet(nn.Sequential):
    """The paper's networks for CIFAR-10 (section 4.2): 6n + 2 layers, stages of 16, 32 and 64 channels, shortcuts A."""

    def __init__(self, num_classes: int, channels: int, depth: int, stem: FirstLayers, zero_init_residual: bool) -> None:
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, 16, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        blocks = (depth - 2) // 6
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _he_init(module)
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)


class PaddedShortcut(nn.Module):
    """Option A of the paper: every second pixel, the missing channels zeros, half on either side; no parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        missing = outputs - inputs
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], self.padding)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Blocks of `outputs` channels; one that changes their number halves the size, too."""
    first = BasicBlock(inputs, outputs) if inputs == outputs else BasicBlock(inputs, outputs, 2, PaddedShortcut(inputs, outputs))
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def _he_init(conv: nn.Conv2d) -> nn.Conv2d:
    """torchvision's initial values: He et al. 2015 (arXiv 1502.01852), over outputs."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
