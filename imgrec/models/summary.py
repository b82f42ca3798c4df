"""How large a network is: parameters, and operations for one image."""

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from imgrec.errors import ConfigError, first_line

_SIZES = (8, 16, 32, 64, 128, 224, 256, 512)  # pixels, tried in turn for the hint; 224 is what transformers are built for


class ModelSize(NamedTuple):
    """parameters: how many numbers are learned or loaded; flops: operations for one image, a multiply-add counted as two."""

    parameters: int
    flops: int


def measure_size(net: nn.Module, *, channels: int, image_size: int) -> ModelSize:
    """Size of a network for one [1, channels, image_size, image_size] picture; nothing is computed, the network stays as it was.

    The forward runs on the meta device (shapes without numbers) under torch's FlopCounterMode, in eval mode.
    Raises ConfigError if the network cannot take pictures of that size, with the smallest of the usual sizes that it can take.
    """
    parameters = sum(parameter.numel() for parameter in net.parameters())
    try:
        return ModelSize(parameters, _flops(net, channels, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        enough = next((size for size in _SIZES if size > image_size and _takes(net, channels, size)), None)
        hint = "" if enough is None else f" Set data.image_size={enough} or more."
        name = type(net).__name__.lower()
        raise ConfigError(
            f"model {name} cannot take {image_size}x{image_size} images ({first_line(error)[:150]}).{hint}"
        ) from error


def _takes(net: nn.Module, channels: int, image_size: int) -> bool:
    try:
        _flops(net, channels, image_size)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _flops(net: nn.Module, channels: int, image_size: int) -> int:
    tensors = {name: tensor.detach().to("meta") for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    training = [(module, module.training) for module in net.modules()]
    # torch's fused attention of transformers in eval mode is one operation that the counter does not know.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    net.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(net, tensors, (torch.empty(1, channels, image_size, image_size, device="meta"),))
        return int(counter.get_total_flops())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training:
            module.training = mode
