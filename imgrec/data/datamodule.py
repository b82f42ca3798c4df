"""The loaders of a run: how its batches are cut from the splits of a data set, behind Lightning's data module."""

from collections.abc import Callable, Collection

import numpy as np
import pytorch_lightning as pl
import torch

from imgrec.config.instantiate import build
from imgrec.config.schema import Limit, RunConfig, Split
from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Request
from imgrec.data.class_balance import training_order
from imgrec.data.folder import FileData, ImageFiles, announced, reading_rows
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.data.loader import Loader, Mark, worker_count
from imgrec.data.sampler import EVALUATION_BATCH, BatchPlan, EpochBatches, plan_batches, split_epoch
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.signals import request_stop
from imgrec.distributed.world import env_number


def build_data(run: RunConfig) -> tuple[ImageData, Augment]:
    """The data set and the augmentation of a run; ConfigError where its config names something else."""
    return build("data", run.data.to_node(), ImageData), build("augment", run.augment, Augment)


class DataModule(pl.LightningDataModule):
    """The batches of a run on `devices` processes; `plan` says how its global batch comes about.

    start: (epoch, global batches of it already done), where a resumed run continues; left_out: the unreadable images that
    it had met; doing: what the run does when a loader waits, for errors; mark: of the loader of train.
    training_side: pixels of the training images of the next epoch that are read from files; None: data.image_size.
    Raises ConfigError for a global batch that the devices do not divide, and what `data` raises.
    """

    training_side: int | None = None

    def __init__(
        self,
        run: RunConfig,
        data: ImageData,
        augment: Augment | None,
        *,
        devices: int,
        start: tuple[int, int] = (0, 0),
        left_out: Collection[str] = (),
        doing: Callable[[], str] = lambda: "waiting for data",
        mark: Mark = lambda part: None,
    ) -> None:
        super().__init__()
        self.data, self.start, self._doing, self._mark = data, start, doing, mark
        train = data.splits.train
        self.plan = plan_batches(
            batch_size=run.global_batch,
            samples=len(train),
            devices=devices,
            max_device_batch=run.device_batch,
            pairs=augment is not None and augment.mixes,
        ).limited(run.trainer.limit_train_batches)
        self._limits: dict[Split, Limit] = {"val": run.trainer.limit_val_batches, "test": run.trainer.limit_test_batches}
        # torchrun says how many processes share the machine; else it is one machine with all of them.
        processes_here = env_number("LOCAL_WORLD_SIZE", devices, least=1)
        self.workers = worker_count(run.num_workers, in_memory=data.in_memory, processes_here=processes_here)
        self.cores = worker_count("auto", in_memory=False, processes_here=processes_here)
        order = training_order(run.sampling, run.class_weights or {}, train.labels, data.classes, seed=run.seed)
        self._order = train.reading_order(order, run.seed) if isinstance(train, ImageFiles) else order
        self._training = _cached(data, train).for_training(augment, run.seed)
        self._validation = None if data.splits.val is None else _cached(data, data.splits.val)
        self._evaluation_batch = max(self.plan.per_device, min(EVALUATION_BATCH, run.device_batch))
        self._timeout_s, self._for_gpu = run.trainer.timeout_s, trains_on_cuda(run.trainer)
        self._statistics_batch = max(2, min(self.plan.global_size, run.device_batch, EVALUATION_BATCH))
        self._bad = set(left_out)
        self._constant: set[str] = set()
        self._loaders: list[Loader[Batch]] = []

    def train_dataloader(self) -> Loader[Batch]:
        requests = EpochBatches(
            self.plan, self._order, epoch=self._epoch, rank=self._rank(), start=self.start, side=lambda: self.training_side
        )
        return self._loader(self._training, requests, self._mark)

    def first_training_batches(self, images: int, share: slice) -> list[Batch]:
        """A share of the batches of the first `images` of the first epoch, or of all where it has fewer; the same on any number of ranks."""
        order = self._order(0)[:images]
        parts = np.array_split(order, -(-len(order) // self._statistics_batch))
        return [self._training[Request(epoch=0, indices=rows, whole=len(rows))] for rows in parts[share]]

    def val_dataloader(self) -> Loader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Loader[Batch]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Loader[Batch]:
        """Of the validation images once more, for the temperature of the weights that are tested."""
        return self._evaluation_loader("val")

    def _evaluation_loader(self, split: Split) -> Loader[Batch]:
        """Every image once over all ranks; a rank may get an empty last batch, so that all have equally many."""
        images = self._validation if split == "val" and self._validation is not None else self.data.split(split)
        plan = self.evaluation_plan(split)
        rows = reading_rows(images)
        requests = EpochBatches(plan, lambda epoch: rows, epoch=lambda: 0, rank=self._rank())
        return self._loader(images, requests)

    def evaluation_plan(self, split: Split) -> BatchPlan:
        images, devices = len(self.data.split(split)), self.plan.devices
        return split_epoch(images, self._evaluation_batch * devices, devices=devices).limited(self._limits[split])

    def images_read(self, split: Split) -> int:
        """Images of a split that an epoch, a validation or the test reads, within trainer.limit_*_batches; 0 without the split."""
        images = int(self.data.counts(split).sum())
        if not images:
            return 0
        plan = self.plan if split == "train" else self.evaluation_plan(split)
        return min(images, plan.steps_per_epoch * plan.global_size)

    def _loader(self, images: ImageSet, requests: EpochBatches, mark: Mark = lambda part: None) -> Loader[Batch]:
        self._loaders.append(
            Loader(
                images,
                announced(images, requests),
                num_workers=self.workers,
                timeout_s=self._timeout_s if self.plan.devices == 1 else None,
                lost=request_stop,
                doing=self._doing,
                mark=mark,
                for_gpu=self._for_gpu,
            )
        )
        return self._loaders[-1]

    def close(self) -> None:
        """End the worker processes of all loaders that it gave."""
        for loader in self._loaders:
            loader.close()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Notes the images that were left out and those that are constant, and sends the rest on."""
        if not batch.bad and not batch.constant:
            return batch
        self._bad.update(batch.bad)
        self._constant.update(batch.constant)
        return batch._replace(bad=(), constant=())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting, from pinned memory. Lightning asks of each part of a batch whether it can be moved: 16 us a step, 5 here."""
        if device.type == "cpu":
            return batch
        images, labels, indices, partners = (tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch[:4])
        return batch._replace(images=images, labels=labels, indices=indices, partners=partners)

    def bad_images(self) -> list[str]:
        """Paths of the images that this process, and a run that it resumes, has left out so far (on_bad_image: skip)."""
        return sorted(self._bad)

    def constant_images(self) -> list[str]:
        """Paths of the images of this process so far whose pixels are all the same."""
        return sorted(self._constant)

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _rank(self) -> int:
        if self.trainer is None:
            return 0
        assert self.trainer.world_size == self.plan.devices, "the data module was made for another number of devices"
        return self.trainer.global_rank


def _cached(data: ImageData, images: ImageSet) -> ImageSet:
    """A split that is read in each epoch, held in memory where data.cache says so."""
    return (
        images.decoded_once() if isinstance(data, FileData) and data.cache == "ram" and isinstance(images, ImageFiles) else images
    )
