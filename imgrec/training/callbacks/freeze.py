"""finetune.freeze_epochs: only the head of the network is trained at first."""

import pytorch_lightning as pl
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from imgrec.models.layers import head_names
from imgrec.training.module import Classifier
from imgrec.training.strategies import DDP

_FROZEN = "_imgrec_frozen"  # attribute of the network: names of the parameters that freeze() froze


class FreezeBackbone(pl.Callback):
    """Freezes all but the head in the first `epochs` epochs. DDP is told, as it waits for the gradients of unfrozen parameters."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        net = pl_module.net
        before = [parameter.requires_grad for parameter in net.parameters()]
        if trainer.current_epoch < self.epochs:
            freeze(net, len(pl_module.classes))
        elif _FROZEN in net.__dict__:
            unfreeze(net)
        after = [parameter.requires_grad for parameter in net.parameters()]
        if isinstance(trainer.strategy, DDP) and before != after:
            trainer.strategy.rewrap()

    on_train_start = on_train_epoch_start  # no epoch starts in a run that resumes within one


def freeze(net: nn.Module, num_classes: int) -> None:
    """Train only the head until `unfreeze`: other parameters get no gradient, batch norms keep their statistics.

    `net.train()` would end the latter, but Lightning restores the mode of each module after a validation. Dropout stays
    active. Freezing twice is allowed.
    """
    heads = tuple(f"{head}." for head in head_names(net, num_classes))
    frozen = net.__dict__.setdefault(_FROZEN, [])
    for name, parameter in net.named_parameters():
        if not name.startswith(heads) and parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.append(name)
    for name, module in net.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats and not name.startswith(heads):
            module.eval()


def unfreeze(net: nn.Module) -> None:
    """Undo `freeze` for the parameters that it froze; batch norms follow `net.training` again."""
    for name in net.__dict__[_FROZEN]:
        net.get_parameter(name).requires_grad_(True)
    del net.__dict__[_FROZEN]
    net.train(net.training)
