"""Images with another number of channels, for networks that were built or trained for RGB."""

from torch import Tensor, nn


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution in the order of definition, with its dotted name."""
    return next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def input_kernels(weight: Tensor, channels: int) -> Tensor:
    """The kernels of a first convolution, [out, in, h, w], as [out, channels, h, w].

    As in timm's `adapt_input_conv`: for one channel they are summed, and a gray image gives what its RGB copy gave. For
    other numbers they are repeated and scaled by in / channels, so equal channels give the same sum.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    inputs = weight.shape[1]
    repeats = -(-channels // inputs)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (inputs / channels)


def set_channels(net: nn.Module, channels: int) -> nn.Module:
    """The network, whose first convolution is changed to take `channels`, with the kernels of `input_kernels`."""
    name, conv = first_conv(net)
    if conv.in_channels != channels:
        assert conv.groups == 1, f"{name} is a grouped convolution"
        conv.weight = nn.Parameter(input_kernels(conv.weight.detach(), channels))
        conv.in_channels = channels
    return net
