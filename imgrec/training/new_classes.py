"""imgrec extend: the network of a run with rows for more classes, and what keeps the answers of the old ones."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgrec.config.schema import Parent, RunConfig
from imgrec.errors import CheckpointError, ConfigError
from imgrec.models.layers import head_names
from imgrec.models.split_head import split_heads
from imgrec.training.module import Classifier


def check_parent(run: RunConfig, parent: Parent, found: str) -> None:
    """ConfigError for what old answers cannot be kept with, CheckpointError where the weights are no longer those of the parent.

    found: the hash of the weights that `weights` names.
    """
    if parent.frozen and run.trainer.strategy == "fsdp":
        raise ConfigError("trainer.strategy=fsdp: rows of the head are frozen, which fsdp shards. Set trainer.strategy=ddp.")
    if parent.frozen and run.finetune.freeze_epochs:
        raise ConfigError(
            f"finetune.freeze_epochs={run.finetune.freeze_epochs}: all but the new rows of the head is frozen anyway. "
            "Leave it out, or set frozen=false."
        )
    if found != parent.sha256:
        raise CheckpointError(
            f"weights={run.weights}: its weights have changed since this run was configured. Type imgrec extend {run.weights} again."
        )


def add_rows(net: nn.Module, parent: Parent, classes: int) -> None:
    """Prepare a network with the old weights for training, in place: new rows begin as the mean of the old ones.

    With parent.frozen nothing but the head is trained then, and its rows are computed apart.
    """
    parts, old = parent.parts(classes), sum(parent.classes)
    with torch.no_grad():
        for tensor in _head_tensors(net, classes):
            tensor[old:] = tensor[:old].mean(dim=0)
    if parent.frozen:
        split_heads(net, parts)
        net.requires_grad_(False)
        for tensor in _head_tensors(net, classes):
            tensor.requires_grad_(True)


def _head_tensors(net: nn.Module, classes: int) -> list[nn.Parameter]:
    """Weights and biases of the head, whose rows are classes."""
    return [tensor for head in head_names(net, classes) for tensor in net.get_submodule(head).parameters(recurse=False)]


class KeepOldClasses(pl.Callback):
    """Trains nothing but the rows of new classes: the logits of the old ones stay as they are, to the bit.

    Batch norm and dropout are as in an evaluation. Old rows get no gradient, and are put back after each step, as weight
    decay moves rows without one and some optimizers (LAMB, Muon) look at all rows of a matrix together.
    """

    def __init__(self, old: int) -> None:
        """old: the number of old classes, which come first."""
        self.old = old

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.net.eval()  # Lightning restores the mode of each module after a validation

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.on_train_epoch_start(trainer, pl_module)  # no epoch starts in a run that resumes within one
        kept = [(tensor, tensor.detach()[: self.old].clone()) for tensor in _head_tensors(pl_module.net, len(pl_module.classes))]

        @torch.no_grad()
        def restore(optimizer: Optimizer, args: object, kwargs: object) -> None:
            for tensor, rows in kept:
                tensor[: self.old] = rows

        for tensor, _ in kept:
            tensor.register_hook(self._of_new_rows)  # type: ignore[no-untyped-call]
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(restore)

    def _of_new_rows(self, gradient: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(gradient[: self.old]), gradient[self.old :]])
