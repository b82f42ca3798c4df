"""Batch norm whose training statistics are those of the whole global micro-batch, over all ranks.

On CUDA it is torch's own, which does not run on the CPU. There it is a class of ours, with which tests prove that
several ranks equal one process.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from imgrec.errors import ConfigError

TIMM_NORM = "BatchNormAct2d"  # with its dropout and activation
CONVERTED = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", TIMM_NORM)


def convert_sync_batchnorm(net: nn.Module, *, on_cuda: bool) -> nn.Module:
    """Replace every batch norm in `net`, with the same tensors, so that names and state dict stay. Returns the network.

    on_cuda: whether it is trained there. ConfigError for a network without batch norm, or with an unknown kind of it.
    """
    norms = {name: module for name, module in net.named_modules(remove_duplicate=False) if isinstance(module, _BatchNorm)}
    if not norms:
        raise ConfigError(
            f"trainer.sync_batchnorm=true has no effect: {type(net).__name__} has no batch norm. Set trainer.sync_batchnorm=false."
        )
    for name, module in norms.items():
        if type(module).__name__ not in CONVERTED:
            raise ConfigError(
                f"trainer.sync_batchnorm=true: {name} of {type(net).__name__} is a {type(module).__name__}, and only "
                f"{', '.join(CONVERTED)} can be synchronised. Set trainer.sync_batchnorm=false."
            )
    if on_cuda:
        return _convert_to_torch(net)
    # A module with two names is converted once.
    converted: dict[nn.Module, SyncBatchNorm] = {module: SyncBatchNorm(module) for module in norms.values()}
    for name, module in norms.items():
        if name:
            net.set_submodule(name, converted[module])
    return converted.get(net, net)


def _convert_to_torch(net: nn.Module) -> nn.Module:
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(module).__name__ == TIMM_NORM for module in net.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm as convert  # torch's leaves out dropout and activation
    converted = convert(net)
    for module in converted.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.register_forward_pre_hook(_widen_empty)
    return converted


def _widen_empty(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    """In mixed precision torch's norm sends 16-bit zeros from a rank without samples, 32-bit statistics from others."""
    return None if args[0].numel() else (args[0].float(),)


def has_sync_batchnorm(net: nn.Module) -> bool:
    """Whether the forward pass of `net` in training waits for every rank, one without samples too."""
    return any(isinstance(module, SyncBatchNorm | nn.SyncBatchNorm) for module in net.modules())


class SyncBatchNorm(_BatchNorm):
    """In training a batch norm over the samples of all ranks, else nn.BatchNorm; float [B, C, ...] -> the same shape.

    Every rank must call it, with 0 samples too, and backward as well: the ranks exchange 2 C + 1 numbers in each. The
    running statistics are equal on all of them. The gradients of the weights are over this rank's samples: the strategy
    sums them over ranks.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats, self.training = norm.affine, norm.track_running_stats, norm.training
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self._modules = norm._modules  # BatchNormAct2d: its dropout and its activation, in this order

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, "a batch norm takes [B, C, ...]"

    def forward(self, input: Tensor) -> Tensor:
        if self.training and distributed.is_initialized() and distributed.get_world_size() > 1:
            normed: Tensor = self._synchronized(input)
        else:
            normed = super().forward(input)
        for child in self.children():
            normed = child(normed)
        return normed

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # collectives inside an autograd function
    def _synchronized(self, input: Tensor) -> Tensor:
        """Ioffe and Szegedy 2015 (arXiv 1502.03167), with sums over the ranks too."""
        others = [dim for dim in range(input.ndim) if dim != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        wide = input.double() if input.dtype == torch.float64 else input.float()
        sums = _SumOverRanks.apply(torch.cat([wide.sum(others), wide.new_tensor([input.numel() // input.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp(min=1)
        centred = wide - mean.view(shape)  # first, as E[x^2] - E[x]^2 would cancel
        var = _SumOverRanks.apply(centred.square().sum(others)) / count.clamp(min=1)
        output: Tensor = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = (count > 0).to(mean.dtype) * (
                    1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
                )
                self.running_mean += share * (mean - self.running_mean)
                self.running_var += share * (var * (count / (count - 1).clamp(min=1)) - self.running_var)
        return output.to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Each rank's gradient is the sum over the ranks too, as every rank's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, grad)
