"""Lightning's strategies for several ranks: DDP with the network on each, FSDP with a shard of it on each."""

from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from imgrec.distributed.sharding import gather_whole, shard, sharded_like
from imgrec.training.lightning_compat import find_averages, remove_ddp_hooks

StrategyName = Literal["auto", "ddp", "fsdp"]


def make_strategy(name: StrategyName, *, world_size: int) -> Strategy | Literal["auto"]:
    """Lightning's strategy for a run. On one rank all three names mean the same."""
    if world_size == 1:
        return "auto"
    if name == "fsdp":
        return FSDP()
    # Batch norms that are not synchronised have the running statistics of rank 0: DDP broadcasts them before each step,
    # so they are validated and saved, and equal in a resumed run. No static_graph: `rewrap` changes the graph.
    return DDP(gradient_as_bucket_view=True)


class DDP(DDPStrategy):
    """Lightning's, for a network whose parameters are frozen and unfrozen."""

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


class FSDP(DDPStrategy):
    """torch's fully_shard (Zhao 2023, arXiv 2304.11277), on the CPU with gloo too.

    Each rank holds 1/N of the weights, gradients and optimizer states, and gathers the weights of a block to compute
    it. Every rank builds the whole network on the CPU first. A checkpoint is one file with whole tensors, as DDP writes
    it, so a run may be resumed with another strategy or world size. Saving is a collective.
    """

    mesh: DeviceMesh | None = None

    def setup(self, trainer: pl.Trainer) -> None:
        """DDPStrategy.setup of Lightning 2.6.6, in its order, which shards the network instead of wrapping it."""
        classifier = self.lightning_module
        assert classifier is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.mesh = self.mesh or init_device_mesh(self.root_device.type, (self.world_size,))
        shard(classifier.net, self.mesh)  # type: ignore[arg-type]
        for averaged in find_averages(trainer):
            shard(averaged.net, self.mesh)  # type: ignore[arg-type]
            averaged.to(self.root_device)
        self.model = self.precision_plugin.convert_module(classifier)
        self.model_to_device()  # what is not sharded: buffers and metric sums
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)  # after the parameters are on the device, so their states are there too
        self.setup_precision_plugin()

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
