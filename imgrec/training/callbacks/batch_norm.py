"""The statistics of batch norm in the first steps, when its running averages are those of other weights."""

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imgrec.data.batch import Batch
from imgrec.data.datamodule import DataModule
from imgrec.distributed.sync_batchnorm import has_sync_batchnorm
from imgrec.training.module import Classifier


class BatchNormStatistics(pl.Callback):
    """Measures them for the current weights before each validation of the first steps (Wu and Johnson 2021, arXiv 2105.07576).

    A running average remembers about ten steps. In the first ones the weights change so much meanwhile that the errors of
    the layers add up: a ResNet-18 had a validation loss of 72 where that of the training was 1.4.
    In the last of several epochs the rate of most schedules ends near 0, and an average over more images is better.
    Where the weights are averaged it stands behind that callback, and so measures for the average.
    """

    def __init__(self, *, images: int, until_step: int) -> None:
        """images: of train to measure with, as they are trained on; 0: never. until_step: validations after it keep the averages."""
        self.images, self.until_step = images, until_step
        self._batches: list[Batch] = []

    def begins_alike(self, net: nn.Module, *, epochs: int, longer: int, step: int) -> bool:
        """The validation of the last epoch is one that is not measured for, and in a longer run is not the last."""
        return epochs == 1 or not self.images or step > self.until_step or not trained_norms(net)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        norms = trained_norms(pl_module.net)
        last = 1 < (trainer.max_epochs or 0) == trainer.current_epoch + 1
        if not norms or not self.images or trainer.global_step > self.until_step or last:
            self._batches = []
            return
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._batches = self._batches or first_batches(data, self.images, trainer.global_rank, trainer.world_size)
        # Each rank has the same images: all of them, or its part where the norms add those of all ranks up.
        part = slice(trainer.global_rank, None, trainer.world_size) if has_sync_batchnorm(pl_module.net) else slice(None)
        inputs = (pl_module.augmented(trainer.strategy.batch_to_device(batch))[0][part] for batch in self._batches)
        # Uncompiled: with each other momentum a compiled network would be compiled anew.
        with torch.no_grad(), trainer.precision_plugin.val_step_context(), torch.compiler.set_stance("force_eager"):
            measure_statistics(norms, pl_module.net, inputs)


def first_batches(data: DataModule, images: int, rank: int, ranks: int) -> list[Batch]:
    """The first training batches on every rank, each read by one of them. A collective.

    Of two images at least: batch norm cannot measure one, which is left where the other was skipped.
    """
    own = data.first_training_batches(images, slice(rank, None, ranks))
    shares = [own] * ranks
    if ranks > 1:
        distributed.all_gather_object(shares, own)
    in_order = (batch for nth in zip_longest(*shares) for batch in nth)
    return [batch for batch in in_order if batch is not None and len(batch.labels) > 1]


def trained_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms that average their statistics, without frozen ones."""
    return [
        module
        for module in net.modules()
        if isinstance(module, _BatchNorm)
        and module.momentum is not None  # without a momentum it is a mean already
        and module.track_running_stats
        and all(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]


def measure_statistics(norms: Sequence[_BatchNorm], net: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> None:
    """Sets the running mean and variance to the mean of those of `inputs`, each float [B, C, H, W]."""
    before = [
        (norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms
    ]  # which counts the batches of the training
    for norm in norms:
        norm.train()
    try:
        for number, images in enumerate(inputs, 1):
            for norm in norms:
                norm.momentum = 1 / number
            net(images)
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.eval()
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
