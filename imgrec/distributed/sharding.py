"""The weights of a network, sharded over ranks by torch's fully_shard, and gathered for a checkpoint."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# Blocks with a smaller share of all parameters are gathered with the rest of the network: each gather has a latency.
MIN_BLOCK_SHARE = 0.01


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every parameter of `net` over the ranks, in place, if it is not yet; its blocks are gathered one by one."""
    if is_sharded(net):
        return
    net.to(memory_format=torch.contiguous_format)  # fully_shard takes no other; the images stay channels-last
    # Sharded again after the forward pass, the outermost too, so that parameters are shards between steps.
    for block in blocks(net):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)
    net.register_load_state_dict_pre_hook(_shard_state_dict)  # type: ignore[no-untyped-call]


def is_sharded(net: nn.Module) -> bool:
    """Whether the forward pass of `net` gathers weights, so that every rank has to run it, one without samples too."""
    return any(isinstance(parameter, DTensor) for parameter in net.parameters())


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """What containers hold: residual blocks, encoder layers. No container, and none inside another."""
    least = MIN_BLOCK_SHARE * sum(parameter.numel() for parameter in net.parameters())
    for child in net.children():
        held = isinstance(net, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if held and not container and sum(parameter.numel() for parameter in child.parameters()) > least:
            yield child
        else:
            yield from blocks(child)


def _shard_state_dict(net: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `net.load_state_dict`: whole tensors become this rank's shards."""
    for name, parameter in net.named_parameters():
        if prefix + name in state_dict:
            state_dict[prefix + name] = sharded_like(state_dict[prefix + name], parameter)


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has whole."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    device = parameter.device
    return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather_whole(value: Any, *, keep: bool) -> Any:
    """Nested dicts, lists and tuples with each sharded tensor whole on the CPU, or None if not `keep`. A collective."""

    def gather(sharded: DTensor) -> Tensor | None:
        full = sharded.full_tensor()
        return full.cpu() if keep else None

    return apply_to_collection(value, DTensor, gather)
