"""The LightningModule: one step, its metrics, the optimizer with its schedule, and the names of what is logged."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn

from imgrec.config.instantiate import build
from imgrec.config.schema import RunConfig
from imgrec.data import counter_rng
from imgrec.data.augment import Augment
from imgrec.data.batch import Batch
from imgrec.data.datamodule import DataModule
from imgrec.data.folder import FileData
from imgrec.data.image_data import ImageData
from imgrec.data.preprocess import Preprocess
from imgrec.data.sampler import BatchPlan
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.sharding import is_sharded
from imgrec.distributed.sync_batchnorm import convert_sync_batchnorm, has_sync_batchnorm
from imgrec.errors import ConfigError, DataError
from imgrec.inference.device import Halving
from imgrec.inference.metrics import ConfusionTally, Report, exact_float
from imgrec.inference.split_predictions import LogitCollector, PredictionCollector
from imgrec.models.layers import layers
from imgrec.models.losses import Loss, answered, one_hot
from imgrec.models.summary import trains_on_one
from imgrec.training.distill import Teacher
from imgrec.training.lightning_compat import QuickHooks, ask_once, skip_unused_hooks
from imgrec.training.optimizer import build_optimizer, decayed, optimizer_node
from imgrec.training.scheduler import lightning_schedulers, stretch
from imgrec.training.torch_compat import compile_in_place

IMAGES_OF_WEIGHTS = 5000  # that a network is set from, as in the records of CIFAR-10


class EpochSums:
    """Sums over this rank's samples of an epoch, without waiting for the device. Not in the module, which would look at each value that is set."""

    def __init__(self, device: torch.device) -> None:
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self.samples = 0

    def add(self, loss: Tensor, correct: Tensor, samples: int) -> None:
        # New tensors, so that a snapshot of a step needs no copies.
        self.loss, self.correct = self.loss + loss, self.correct + correct
        self.samples += samples


@runtime_checkable
class SetFromImages(Protocol):
    """A network some of whose weights are set from the training images before the first step, such as model=speed_cnn."""

    def set_from_images(self, batches: Iterable[Tensor], /) -> None:
        """Once through `batches`: float [B, C, H, W], as the network sees images, without the augmentation of batches."""


class Classifier(QuickHooks, pl.LightningModule):
    """A network with its loss, and for training its optimizer and schedulers.

    Measured per epoch, for the callbacks: {train,val}/{loss,accuracy}, val/macro_f1, and val/top5 with more than five classes.
    teacher: of distill.teacher. with_schedule: False leaves the learning rate to a callback.
    """

    validation_report: Report  # of the last validation
    test_report: Report  # of the last test
    temperature = 1.0  # of the tested weights, by which the logits of the test are divided
    training_side: int | None = None  # pixels of training images that are smaller than data.image_size
    _objectives: Tensor  # their sum over the micro-batches of the global batch so far, on this rank

    def __init__(
        self,
        run: RunConfig,
        net: nn.Module,
        data: ImageData,
        augment: Augment,
        plan: BatchPlan,
        *,
        teacher: Teacher | None = None,
        with_schedule: bool = True,
    ) -> None:
        super().__init__()
        if run.monitor == "val/top5" and len(data.classes) <= 5:
            raise ConfigError(
                f"monitor=val/top5: expected more than 5 classes, but the data has {len(data.classes)}. Set monitor=val/accuracy."
            )
        skips = isinstance(data, FileData) and data.reading["on_bad_image"] == "skip"  # any batch may have fewer images
        size = {"channels": run.data.channels, "image_size": run.data.image_size}
        self.least_samples = 2 if (plan.has_single or skips) and not trains_on_one(net, **size) else 1
        if plan.has_single and self.least_samples > 1 and not (run.trainer.sync_batchnorm and plan.devices > 1):
            raise ConfigError(_one_at_once(run, plan))
        if run.trainer.sync_batchnorm:
            net = convert_sync_batchnorm(net, on_cuda=trains_on_cuda(run.trainer))
        if run.trainer.compile:
            # Code for each batch size: that for any size, which torch compiles at the second one, rounds otherwise, and a resumed
            # run would go over to it at another step.
            compile_in_place(net, dynamic=None if skips else False)
        self.make_optimizer = partial(
            build_optimizer,
            optimizer_node(run.optim, run.trainer, run.finetune),
            batch=plan.global_size,
            decay_on=run.decay_on,
            layer_decay=run.finetune.layer_decay,
            layers=layers(net, len(data.classes)) if run.finetune.layer_decay != 1 else None,
        )
        self.memory_format = torch.channels_last if run.trainer.channels_last else torch.contiguous_format
        self.net = net.to(memory_format=torch.channels_last) if run.trainer.channels_last else net
        self.loss = build("loss", run.loss, Loss)
        self.teacher = teacher
        self.loss.set_class_counts(torch.from_numpy(data.counts("train")))
        steps = run.data
        self.preprocess = Preprocess(
            image_size=steps.image_size, mean=steps.mean, std=steps.std, interpolation=steps.interpolation
        )
        self.classes, self.augment, self.seed, self.decay_on = data.classes, augment, run.seed, run.decay_on
        self.scheduler = run.scheduler if with_schedule else None
        self.sums, self.halving = EpochSums(self.device), Halving()
        self.predictions = PredictionCollector(images=int(data.counts("test").sum()), classes=len(self.classes))
        self.validation = LogitCollector(images=int(data.counts("val").sum()), classes=len(self.classes))
        skip_unused_hooks(self, pl.LightningModule)

    def set_network_from_images(self, loaders: DataModule) -> None:
        """The weights of a network that come from the training images, the same on all ranks; nothing for other networks."""
        if isinstance(self.net, SetFromImages):
            batches = loaders.first_training_batches(IMAGES_OF_WEIGHTS, slice(None))
            with torch.no_grad():
                self.net.set_from_images(self.preprocess(batch.images) for batch in batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._skips_forward(batch):
            # The loss is a zero that depends on every parameter, as DDP waits for the gradient of each.
            empty_sums = [weight.reshape(-1)[:0].sum() for weight in self.net.parameters() if weight.requires_grad]
            return self._noted(torch.stack(empty_sums).sum(), batch_idx)
        images, targets = self.augmented(batch)
        logits: Tensor = self.net(images).float()
        losses = self.loss(logits, targets)
        if self.teacher is not None:
            losses = self.teacher.blend(losses, logits, images, self.preprocess)
        # The gradient of a global batch is its mean over samples, also of a short last one: DDP averages over ranks and
        # Lightning divides by the accumulated batches, so each part adds its sum over the size of the global batch.
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        total = summed = losses.sum()
        if self.loss.l1 or self.loss.l2:
            total = total + len(losses) * self.loss.penalty(decayed(self.net, self.decay_on))
        objective: Tensor = total * (parts / batch.whole)
        correct = targets.gather(1, logits.argmax(1, keepdim=True))  # a share with soft targets
        self.sums.add(summed.detach(), correct.sum(), len(losses))
        return self._noted(objective, batch_idx)

    def _noted(self, objective: Tensor, batch_idx: int) -> Tensor:
        """The objective of a micro-batch, which it adds to those of its global batch."""
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._objectives = objective.detach() if begins else self._objectives + objective.detach()
        return objective

    def step_loss(self) -> Tensor:
        """The loss of the last step: the mean over its global batch, with penalties. A collective; it does not wait for a GPU."""
        loss = self._objectives / (self.trainer.world_size * self.trainer.accumulate_grad_batches)
        if self.trainer.world_size > 1:
            distributed.all_reduce(loss)
        return loss

    def _skips_forward(self, batch: Batch) -> bool:
        """Whether this rank has too few samples for batch norm, as some were skipped, and no other waits for its forward pass."""
        if len(batch.labels) >= (self.least_samples if self.training else 1):
            return False
        return not (is_sharded(self.net) or (self.training and has_sync_batchnorm(self.net)))

    def augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Network input [B, C, H, W] and soft targets [B, K] of a training batch."""
        images = self.preprocess.resize(batch.images, self.training_side)
        targets = one_hot(batch.labels, len(self.classes), self.preprocess.mean.dtype)
        images = self.augment.batch(images, seed=self.seed, epoch=batch.epoch, indices=batch.indices)
        images = self.preprocess.normalize(images)
        step = self.trainer.global_step  # optimizer steps, so the same for all parts of a global batch
        images, targets = self.augment.mix(images, targets, batch.partners, seed=self.seed, step=step)
        return images.contiguous(memory_format=self.memory_format), targets

    def on_train_epoch_start(self) -> None:
        # Dropout is seeded by (seed, epoch, rank), so that a resumed run draws what the uninterrupted one did.
        torch.manual_seed(counter_rng.word(self.seed, self.current_epoch, self.global_rank, counter_rng.NETWORK, 0) >> 1)

    def training_sums(self) -> list[Tensor]:
        """This rank's metric sums of the epoch so far: loss, its samples, correct predictions, their samples."""
        samples = torch.tensor(float(self.sums.samples), dtype=torch.float64)
        return [self.sums.loss, samples, self.sums.correct, samples]

    def add_training_sums(self, sums: Sequence[Tensor]) -> None:
        """Add the `training_sums` of a checkpoint that was saved within the epoch."""
        loss, samples, correct, _ = sums
        self.sums.add(loss.to(self.device), correct.to(self.device), int(samples))

    def log_training(self) -> None:
        """Log the training metrics of the epoch. History calls it, as callbacks run before on_train_epoch_end here. A collective."""
        sums = torch.stack([self.sums.loss, self.sums.correct, torch.zeros_like(self.sums.loss)]).to(exact_float())
        sums[2] = self.sums.samples
        if self.trainer.world_size > 1:
            distributed.all_reduce(sums)
        loss, correct, samples = sums.tolist()
        if not samples:
            raise DataError(
                f"data.on_bad_image=skip: none of the images of epoch {self.current_epoch + 1} could be read. "
                "Replace them, or set data.on_bad_image=refuse to see which."
            )
        self.log_dict({"train/loss": loss / samples, "train/accuracy": correct / samples}, logger=False)
        self.sums = EpochSums(self.device)

    def on_fit_start(self) -> None:
        self.sums = EpochSums(self.device)  # where the module is by now
        if self.teacher is not None:
            self.teacher.to(self.device)
        ask_once(self.trainer)

    def on_validation_epoch_start(self) -> None:
        self.tally = ConfusionTally(num_classes=len(self.classes), device=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._measure(batch)
        probabilities, uncalibrated = answered(self.loss, logits, self.temperature)
        self.predictions.update(logits, probabilities, batch.labels, batch.indices, uncalibrated)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Collects the logits of validation images."""
        logits = self._logits(batch)
        self.validation.update(logits, batch.labels, batch.indices)
        return logits

    def _logits(self, batch: Batch) -> Tensor:
        """float [B, K] of images that are not trained on."""
        if self._skips_forward(batch):
            return torch.zeros(0, len(self.classes), device=batch.labels.device)
        if is_sharded(self.net):  # its ranks gather weights together, and so all compute equally many parts
            return self._answers(batch.images)
        return self.halving(self._answers, batch.images)

    def _answers(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.preprocess(images).contiguous(memory_format=self.memory_format)).float()
        return logits

    def _measure(self, batch: Batch) -> Tensor:
        """Adds a batch to the tally; its logits, float [B, K]."""
        logits = self._logits(batch)
        targets = one_hot(batch.labels, len(self.classes), logits.dtype)
        self.tally.update(logits, batch.labels, self.loss(logits, targets))
        return logits

    def _report(self) -> Report:
        return self.tally.report(self.classes)

    def on_validation_epoch_end(self) -> None:
        self.validation_report = self._report()
        # The tally is summed over ranks, so all have the same values.
        self.log_dict(validation_figures(self.validation_report), logger=False)

    def on_test_epoch_end(self) -> None:
        self.test_report = self._report()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.net)
        if self.scheduler is None:
            return optimizer
        schedulers = lightning_schedulers(self.scheduler, optimizer, **self._schedule_steps())
        return [optimizer], schedulers  # type: ignore[return-value]

    def _schedule_steps(self) -> dict[str, int]:
        total = int(self.trainer.estimated_stepping_batches)
        return {"total_steps": total, "steps_per_epoch": max(1, total // max(1, self.trainer.max_epochs or 1))}

    def stretch_schedule(self) -> None:
        """Let the schedule of the rate, from the next step on, be that of the trainer's number of epochs."""
        assert self.scheduler is not None
        for config in self.trainer.lr_scheduler_configs:
            stretch(self.scheduler, config.scheduler, **self._schedule_steps())


def validation_figures(report: Report) -> dict[str, float]:
    """The figures of a validation, by the names that `monitor` may have; top-5 with more than five classes."""
    figures = {"val/loss": report.loss, "val/accuracy": report.accuracy, "val/macro_f1": report.macro_f1}
    return figures if report.top5 is None else figures | {"val/top5": report.top5}


def _one_at_once(run: RunConfig, plan: BatchPlan) -> str:
    """The error about a plan by which a device has a single image at once."""
    share = -(-plan.global_size // plan.devices)
    given = f"max_device_batch={run.max_device_batch}" if share > 1 else f"batch_size={run.batch_size}"
    wanted = f"max_device_batch={share}" if share > 1 else f"batch_size={2 * plan.devices}"
    return (
        f"{given}: the batch norm of this network needs two images or more on a device at once, and with {plan} there may be one. "
        f"Set {wanted}, or larger images by data.image_size."
    )
