"""Pictures with other than three channels, for networks that were written or trained for RGB."""

from torch import Tensor, nn


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Dotted name and module of the convolution that sees the picture: the first one defined."""
    found = next(((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), None)
    assert found is not None, f"{type(net).__name__} has no convolution"
    return found


def input_kernels(weight: Tensor, channels: int) -> Tensor:
    """First kernels [out, in, h, w] as [out, channels, h, w], as timm adapts them (`adapt_input_conv`).

    To one channel they are summed, so a grey picture gives what its RGB copy gave; to other numbers they are
    repeated and scaled by in / channels, so that equal channels still give the same sum.
    """
    have = weight.shape[1]
    if channels == have:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // have)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (have / channels)


def set_channels(net: nn.Module, channels: int) -> None:
    """Makes a network that was built for RGB take `channels`, in place; its first kernels are adapted by `input_kernels`."""
    name, conv = first_conv(net)
    if conv.in_channels == channels:
        return
    assert conv.groups == 1, f"{name} is a grouped convolution"
    conv.weight = nn.Parameter(input_kernels(conv.weight.detach(), channels).clone())
    conv.in_channels = channels
