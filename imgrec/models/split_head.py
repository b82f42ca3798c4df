"""A head whose rows are computed in parts, so that rows which are added change no bit of the logits of the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgrec.errors import ConfigError
from imgrec.models.layers import head_names


class SplitLinear(nn.Linear):
    """A linear layer that multiplies with `parts` rows at a time.

    A matrix product rounds as its shape tells: with one torch call for all rows a third of 252 shapes gave other bits for
    the first rows than a layer of these alone (torch 2.14.1, MKL).
    """

    def __init__(self, layer: nn.Linear, parts: Sequence[int]) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.parts = layer.weight, layer.bias, list(parts)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([F.linear(input, weight, bias) for weight, bias in _rows(self.weight, self.bias, self.parts)], dim=-1)


class SplitConv2d(nn.Conv2d):
    """`SplitLinear` of a convolution: its output channels in parts."""

    def __init__(self, layer: nn.Conv2d, parts: Sequence[int]) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]  # a tuple of any length, says torch
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias, self.parts = layer.weight, layer.bias, list(parts)

    def forward(self, input: Tensor) -> Tensor:
        outputs = [self._conv_forward(input, weight, bias) for weight, bias in _rows(self.weight, self.bias, self.parts)]
        return torch.cat(outputs, dim=1)


def split_heads(net: nn.Module, parts: Sequence[int]) -> None:
    """Replace the head of a network of sum(parts) classes, or each of several, by one in parts, in place.

    ConfigError for a head of another kind than torch's Linear and Conv2d.
    """
    for name in head_names(net, sum(parts)):
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Linear) and _is_plain(layer, nn.Linear):
            net.set_submodule(name, SplitLinear(layer, parts))
        elif isinstance(layer, nn.Conv2d) and _is_plain(layer, nn.Conv2d) and layer.groups == 1:
            net.set_submodule(name, SplitConv2d(layer, parts))
        else:
            raise ConfigError(
                f"the head of {type(net).__name__}, {name}, is a {type(layer).__name__}: classes are added to a Linear or a "
                "Conv2d. Set frozen=false to train all of the network."
            )


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it computes what torch's layer does; timm has a Linear of its own, which does."""
    is_timms = type(layer).__module__.startswith("timm.layers") and type(layer).__name__ == kind.__name__
    return type(layer) is kind or is_timms


def _rows(weight: Tensor, bias: Tensor | None, parts: list[int]) -> list[tuple[Tensor, Tensor | None]]:
    weights = torch.split(weight, parts)
    return list(zip(weights, [None] * len(parts) if bias is None else torch.split(bias, parts), strict=True))
