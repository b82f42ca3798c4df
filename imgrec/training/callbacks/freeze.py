"""finetune.freeze_epochs: only the head of the network is trained at first."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from imgrec.training.freeze import freeze, unfreeze
from imgrec.training.module import Classifier
from imgrec.training.strategies import DDP


class FreezeBackbone(Callback):
    """Freezes all but the head in the first `epochs` epochs. DDP is told, as it waits for the gradients of unfrozen parameters."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # no epoch starts in a run that resumes within one

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        net = pl_module.net
        before = [parameter.requires_grad for parameter in net.parameters()]
        if trainer.current_epoch < self.epochs:
            freeze(net, len(pl_module.classes))
        else:
            unfreeze(net)
        after = [parameter.requires_grad for parameter in net.parameters()]
        if isinstance(trainer.strategy, DDP) and before != after:
            trainer.strategy.rewrap()
