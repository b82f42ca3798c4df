"""Lightning's strategies for several ranks: DDP with the network on each, FSDP with a shard of it on each."""

from typing import Any, Literal

import torch
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from imgrec.distributed.sharding import gather_whole, is_sharded, shard, sharded_like
from imgrec.training.lightning_compat import UnwrappedDDP, find_averages
from imgrec.training.torch_compat import remove_ddp_hooks


def make_strategy(name: Literal["auto", "ddp", "fsdp"], *, world_size: int) -> Strategy | Literal["auto"]:
    """Lightning's strategy for a run. On one rank all three names mean the same."""
    if world_size == 1:
        return "auto"
    if name == "fsdp":
        return FSDP()
    # Batch norms that are not synchronised have the running statistics of rank 0: DDP broadcasts them before each step,
    # so they are validated and saved, and equal in a resumed run. No static_graph: `rewrap` changes the graph.
    return DDP(gradient_as_bucket_view=True)


class DDP(DDPStrategy):
    """Lightning's, for a network whose parameters are frozen and unfrozen, and that resumes bit for bit on any number of ranks."""

    def configure_ddp(self) -> None:
        """Wraps the network, and has DDP put the gradients where they stay.

        DDP sorts them into other buckets after the first backward, in the order in which they came. The place of a gradient
        decides in which order three ranks or more add it up, so the first step after a resume would end in other bits than
        the same step of an unbroken run. The backward here gives zeros, from the last parameter to the first, as networks do.
        """
        super().configure_ddp()
        classifier, model = self.lightning_module, self.model
        assert classifier is not None
        assert model is not None
        parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]

        def sum_to_zero(zero: Tensor) -> Tensor:
            return zero * torch.stack([parameter.sum() for parameter in parameters]).sum()

        classifier.forward = sum_to_zero  # type: ignore[method-assign]  # what DDP calls, as Lightning does it
        try:
            model(torch.zeros((), device=self.root_device)).backward()
        finally:
            del classifier.forward
        classifier.zero_grad()

    def rewrap(self) -> None:
        """Called on every rank after (un)freezing: DDP waits for the parameters that were not frozen when it was made.

        find_unused_parameters would do too, but walks the graph in each step and sends zeros for frozen parameters.
        """
        if isinstance(self.model, DistributedDataParallel):
            assert self.lightning_module is not None
            remove_ddp_hooks(self.model)
            self.lightning_module.zero_grad()  # the gradients are views of the old buckets
            self.model = self.lightning_module
            self.configure_ddp()


class FSDP(UnwrappedDDP):
    """torch's fully_shard (Zhao 2023, arXiv 2304.11277), on the CPU with gloo too.

    Each rank holds 1/N of the weights, gradients and optimizer states, and gathers the weights of a block to compute
    it. Every rank builds the whole network on the CPU first. A checkpoint is one file with whole tensors, as DDP writes
    it, so a run may be resumed with another strategy or world size. Saving is a collective.
    """

    def model_to_device(self) -> None:
        """The shards, and what is not sharded: buffers and metric sums. Before a test they are there already."""
        classifier = self.lightning_module
        assert classifier is not None
        if not is_sharded(classifier):
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            for module in (classifier, *find_averages(classifier.trainer)):
                shard(module.net, mesh)  # type: ignore[arg-type]
                module.to(self.root_device)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validates with the running statistics of rank 0, as DDP does."""
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
        """Lightning's would move the shards to the CPU, before the test."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()
