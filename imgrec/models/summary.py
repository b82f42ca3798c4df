"""How large a network is: parameters, and operations for one image."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from imgrec.errors import ConfigError, first_line

_SIZES = (8, 16, 32, 64, 128, 224, 256, 512)  # pixels, tried in turn for the hint; most transformers are built for 224


class ModelSize(NamedTuple):
    parameters: int
    flops: int  # operations for one image; a multiply-add counts as two

    def training_operations(self, images: int) -> int:
        """Of a training step; the backward pass takes twice the forward pass."""
        return 3 * self.flops * images


def measure_size(net: nn.Module, *, channels: int, image_size: int, num_classes: int | None = None) -> ModelSize:
    """Size of a network for one image, counted by torch on the meta device in eval mode; the network is not changed.

    Raises ConfigError if the network does not accept this image size, with the smallest usual size that it accepts, and if it
    answers an image with something else than `num_classes` logits.
    """
    parameters = sum(parameter.numel() for parameter in net.parameters())
    try:
        flops, answer = _flops(net, channels, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        enough = next((size for size in _SIZES if size > image_size and _accepts(net, channels, size)), None)
        hint = "" if enough is None else f" Set data.image_size={enough} or more."
        refused = f"model {type(net).__name__.lower()} does not accept {image_size}x{image_size} images"
        raise ConfigError(f"{refused} ({first_line(error)[:150]}).{hint}") from error
    if num_classes is not None and not (isinstance(answer, Tensor) and answer.shape == (1, num_classes)):
        what = f"a tensor {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ConfigError(
            f"model {type(net).__name__} answers one image with {what}: expected logits [1, {num_classes}], one for each class. "
            "Return a tensor [B, num_classes]."
        )
    return ModelSize(parameters, flops)


def trains_on_one(net: nn.Module, *, channels: int, image_size: int) -> bool:
    """Whether the network can train on a batch of one image: batch norm cannot where it sees one pixel of each channel."""
    try:
        _flops(net, channels, image_size, training=True)
    except (RuntimeError, ValueError) as error:
        return "more than 1 value per channel" not in str(error)
    return True


def _accepts(net: nn.Module, channels: int, image_size: int) -> bool:
    try:
        _flops(net, channels, image_size)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _flops(net: nn.Module, channels: int, image_size: int, *, training: bool = False) -> tuple[int, Any]:
    """Operations for one image, and the network's answer."""
    tensors = {name: tensor.detach().to("meta") for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    modes = [(module, module.training) for module in net.modules()]
    # FlopCounterMode cannot count torch's fused attention, which transformers use in eval mode.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    net.train(training)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            answer = functional_call(net, tensors, (torch.empty(1, channels, image_size, image_size, device="meta"),))
        return int(counter.get_total_flops()), answer
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            module.training = mode
