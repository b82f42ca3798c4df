"""ResNet: He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgrec.models.checks import check_option

CIFAR_DEPTHS = (20, 32, 44, 56, 110)  # section 4.2: 6n + 2 layers, three stages of 16, 32, 64 channels
_IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DEPTHS = (*CIFAR_DEPTHS, *_IMAGENET_STAGES)


class ResNet(nn.Module):
    """The ImageNet family (depth 18 to 152) and the CIFAR family (20 to 110): float [B, channels, H, W] -> logits [B, K].

    Module names, initial weights and outputs of the ImageNet family with `stem="imagenet"` are torchvision's
    (torchvision/models/resnet.py), so its state dicts load as they are; like there, a bottleneck strides in its 3x3
    convolution. The CIFAR family has the parameter-free shortcuts of the paper (option A).

    stem: "imagenet" is 7x7 stride 2 and a pooling (down 4 times before the first stage); "small" is 3x3 stride 1.
    zero_init_residual: every block starts as the identity (Goyal et al. 2017, arXiv 1706.02677).

    Raises ConfigError for a depth that neither family has.
    """

    def __init__(
        self, *, num_classes: int, channels: int, depth: int, stem: Literal["imagenet", "small"], zero_init_residual: bool
    ) -> None:
        super().__init__()
        check_option("model.depth", depth, DEPTHS)
        check_option("model.stem", stem, ("imagenet", "small"))
        cifar = depth in CIFAR_DEPTHS
        stages = 3 * ((depth - 2) // 6,) if cifar else _IMAGENET_STAGES[depth]
        width = 16 if cifar else 64
        bottleneck = depth >= 50 and not cifar
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages = len(stages)
        inputs = width
        for i, blocks in enumerate(stages):
            outputs = width * 2**i * (4 if bottleneck else 1)
            layer = nn.Sequential()
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                shortcut = _shortcut(inputs, outputs, stride, padded=cifar)
                layer.append((Bottleneck if bottleneck else BasicBlock)(inputs, outputs, stride, shortcut))
                inputs = outputs
            self.add_module(f"layer{i + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_(module.bn3.weight if isinstance(module, Bottleneck) else module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first one strides."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3 (which strides), 1x1 back, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class PaddedShortcut(nn.Module):
    """Option A of the paper: every `stride`-th pixel, the missing channels zeros, half on either side; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


def _shortcut(inputs: int, outputs: int, stride: int, *, padded: bool) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    if padded:
        return PaddedShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
