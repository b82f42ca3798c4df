"""Lightning's strategies for several ranks: DDP keeps the whole network on each, FSDP a shard of every weight, gradient and optimizer state."""

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
    # Batch norms that are not synchronised follow rank 0: DDP sends its running statistics before each step, so it is they that are validated
    # and saved, and a resumed run has on all ranks what the unbroken one had. No static_graph: `rewrap` changes the graph.
    return DDP(gradient_as_bucket_view=True)


class DDP(DDPStrategy):
    """Lightning's, for a network whose parameters are frozen and unfrozen."""

    def rewrap(self) -> None:
        """Every rank calls it when other parameters learn: DDP waits for the gradients of those that learned when it was made.

        find_unused_parameters would do too, but walks the graph in each step and sends the gradients of frozen parameters as zeros.
        """
        if isinstance(self.model, DistributedDataParallel):
            assert self.lightning_module is not None
            remove_ddp_hooks(self.model)
            self.lightning_module.zero_grad()  # its gradients lie in the buckets of the old one
            self.model = self.lightning_module
            self.configure_ddp()


class FSDP(DDPStrategy):
    """torch's fully_shard (Zhao 2023, arXiv 2304.11277), on the CPU with gloo too.

    Each rank holds 1/N of the weights, gradients and optimizer state, and gathers a block's weights while it computes the block. The network
    itself is made on the CPU, whole, by every rank. A checkpoint is one file with whole tensors, as DDP writes it, so a run may be resumed with
    another strategy or world size. Saving is a collective: every rank calls save_checkpoint.
    """

    mesh: DeviceMesh | None = None

    def setup(self, trainer: pl.Trainer) -> None:
        """Replaces DDPStrategy.setup of Lightning 2.6.6, which wraps the network in DDP where this shards it; the order of the rest is the same."""
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
        self.model_to_device()  # what is not sharded: buffers, the metrics' sums
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)  # of parameters that are on the device already, so their state needs no moving
        self.setup_precision_plugin()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As under DDP, the running statistics of rank 0 are validated."""
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
        """Not Lightning's, which would move each rank's shard to the CPU: the test comes after it."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()
