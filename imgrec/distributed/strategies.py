"""How several processes train one network: DDP keeps all of it on each, FSDP a part of every weight, gradient and optimizer state."""

from collections.abc import Iterator
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies import Strategy as LightningStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Strategy = Literal["auto", "ddp", "fsdp"]
PART = 0.01  # of all parameters: smaller blocks are gathered with the rest of the network, as each gathering has a latency


def make_strategy(name: Strategy, *, processes: int) -> LightningStrategy | Literal["auto"]:
    """Lightning's strategy for a run of that many processes. One process has nobody to share with: there all three are the same."""
    if processes == 1:
        return "auto"
    if name == "fsdp":
        return FSDP()
    # Batch norms that are not synchronised follow the first process: DDP sends its running statistics before each step, so it is they that are
    # validated and saved, and a resumed run has on all processes what the unbroken one had. No static_graph: `rewrap` changes the graph.
    return DDP(gradient_as_bucket_view=True)


class DDP(DDPStrategy):
    """Lightning's, for a network whose parameters are frozen and thawed."""

    def rewrap(self) -> None:
        """Every process calls it when other parameters learn: DDP waits for the gradients of those that learned when it was made.

        find_unused_parameters would do too, but walks the graph in each step and sends the gradients of frozen parameters as zeros.
        """
        if isinstance(self.model, DistributedDataParallel):
            assert self.lightning_module is not None
            self.model._remove_autograd_hooks()  # type: ignore[no-untyped-call]
            self.lightning_module.zero_grad()  # its gradients lie in the buckets of the old one
            self.model = self._setup_model(self.lightning_module)
            self._register_ddp_hooks()


class FSDP(DDPStrategy):
    """torch's fully_shard (Zhao 2023, arXiv 2304.11277), on the CPU with gloo too.

    Each process holds 1/N of the weights, gradients and optimizer state, and gathers a block's weights while it computes the block. The
    network itself is made on the CPU, whole, by every process. A checkpoint is one file with whole tensors, as DDP writes it, so a run may go
    on with another strategy or another number of processes. Saving is a collective: every process calls save_checkpoint.
    """

    mesh: DeviceMesh | None = None

    def setup(self, trainer: pl.Trainer) -> None:
        classifier = self.lightning_module
        assert classifier is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.mesh = self.mesh or init_device_mesh(self.root_device.type, (self.world_size,))
        classifier.joins_empty = True  # type: ignore[assignment]  # gathering needs every process, one without samples too
        shard(classifier.net, self.mesh)  # type: ignore[arg-type]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                shard(callback._average_model.module.net, self.mesh)  # type: ignore[arg-type]
                callback._average_model.to(self.root_device)
        self.model = self.precision_plugin.convert_module(classifier)
        self.model_to_device()  # what is not sharded: buffers, the tally
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        _optimizers_to_device(self.optimizers, self.root_device)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As under DDP, the first process's running statistics are validated."""
        if args[1] == 0:
            assert self.lightning_module is not None
            for buffer in self.lightning_module.buffers():
                distributed.broadcast(buffer, 0)
        return super().validation_step(*args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        super().save_checkpoint(gather_whole(checkpoint, keep=self.is_global_zero), filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            names = [name for group in state["param_groups"] for name in group["params"]]
            for name, parameter in zip(names, parameters, strict=True):
                for key, value in state["state"].get(name, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state["state"][name][key] = sharded_like(value, parameter)
            optimizer.load_state_dict(state)

    def teardown(self) -> None:
        """Not Lightning's, which would move each process's part to the CPU: the test comes after it."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Cut every parameter of `net` over the processes, in place; its blocks are gathered one by one. Once: then it does nothing."""
    if any(isinstance(parameter, DTensor) for parameter in net.parameters()):
        return
    net.to(memory_format=torch.contiguous_format)  # fully_shard takes no other; the pictures stay channels-last
    # Sharded again after the forward pass, the outermost too: whoever asks for parameters between steps gets the parts.
    for block in blocks(net):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)
    net.register_load_state_dict_pre_hook(_take_whole)  # type: ignore[no-untyped-call]


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """What containers hold: the residual blocks and encoder layers that large networks consist of. No container, and none inside another."""
    least = PART * sum(parameter.numel() for parameter in net.parameters())
    for child in net.children():
        held = isinstance(net, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if held and not container and sum(parameter.numel() for parameter in child.parameters()) > least:
            yield child
        else:
            yield from blocks(child)


def _take_whole(net: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `net.load_state_dict`: whole tensors become this process's part."""
    for name, parameter in net.named_parameters():
        if prefix + name in state_dict:
            state_dict[prefix + name] = sharded_like(state_dict[prefix + name], parameter)


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor that every process has whole."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    device = parameter.device
    return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather_whole(found: Any, *, keep: bool) -> Any:
    """Nested dictionaries, lists and tuples with every sharded tensor made whole on the CPU; a collective. keep False: None in its place."""
    if isinstance(found, DTensor):
        full = found.full_tensor()
        return full.cpu() if keep else None
    if isinstance(found, dict):
        return {key: gather_whole(value, keep=keep) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(gather_whole(value, keep=keep) for value in found)
    return found
