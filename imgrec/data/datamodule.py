"""The data of a run: splits, classes and preprocessing behind Lightning's data module; each set overrides `read`."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from imgrec.data.batch import Batch, ImageSet
from imgrec.data.class_balance import Sampling, training_order
from imgrec.data.decode import Preprocessing
from imgrec.data.loader import Loader, worker_count
from imgrec.data.sampler import BatchPlan, EpochBatches, plan_batches, sequential_order
from imgrec.data.splits import check_labels, stratified
from imgrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from imgrec.data.augment import Augment


Split = Literal["train", "val", "test"]
EVALUATION_BATCH = 256  # images per device where the training batch is smaller: no gradients, so there is room


class Common(TypedDict):
    """The keys that every data yaml has."""

    num_classes: int | None
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    resize: Literal["squash", "crop"]
    crop_share: float
    val_share: float
    split_seed: int


class Splits(NamedTuple):
    """What a set reads. `val` None: it is cut from train. `test` None: there is none."""

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None


class ImageData(pl.LightningDataModule):
    """Base of the data sets. `setup()` reads; `prepare_run` fixes how the run goes through them; then the loaders.

    Raises ConfigError for keys that contradict each other or what was found, DataError for data that cannot be used.
    """

    in_memory = True

    def __init__(
        self,
        *,
        num_classes: int | None,
        image_size: int,
        channels: int,
        mean: list[float],
        std: list[float],
        resize: Literal["squash", "crop"],
        crop_share: float,
        val_share: float,
        split_seed: int,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(
                f"data.channels={channels}, but pictures have 1 (gray) or 3 (colour). Set data.channels=1 or data.channels=3."
            )
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                fit = "[" + ",".join([f"{sum(values) / max(1, len(values)):.4g}"] * channels) + "]"
                raise ConfigError(f"data.{name} has {len(values)} values, but data.channels={channels}. Set data.{name}={fit}.")
        if min(std) <= 0:
            raise ConfigError(f"data.std={std}, but images are divided by it. Set data.std to numbers above 0.")
        if not 0 < val_share < 1:
            raise ConfigError(f"data.val_share={val_share}, but it is a share between 0 and 1. Set data.val_share=0.1.")
        self.num_classes, self.val_share, self.split_seed = num_classes, val_share, split_seed
        self._preprocessing = Preprocessing(
            image_size=image_size, channels=channels, mean=list(mean), std=list(std), resize=resize, crop_share=crop_share
        )
        self.start: tuple[int, int] = (0, 0)  # (epoch, global batches of it already done): where a resumed run goes on
        self._splits: Splits | None = None
        self._plan: BatchPlan | None = None
        self._bad: set[str] = set()
        self.workers = 0  # loader processes

    def read(self) -> Splits:
        """The set's splits, as they are stored."""
        raise NotImplementedError

    def found(self, classes: int) -> str:
        """What holds that many classes, for the error of num_classes."""
        return f"{type(self).__name__} has {classes} classes"

    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    # Reading

    def setup(self, stage: str | None = None) -> None:
        """Reads, cuts a validation split where there is none and checks; once, however often it is called."""
        if self._splits is not None:
            return
        found = self.read()
        count = len(found.classes)
        if self.num_classes not in (None, count):
            names = ", ".join(found.classes[:3]) + (", ..." if count > 3 else "")
            raise ConfigError(
                f"data.num_classes={self.num_classes}, but {self.found(count)} ({names}). Set data.num_classes={count}."
            )
        for name, split in (("train", found.train), ("val", found.val), ("test", found.test)):
            if split is not None:
                check_labels(split.labels, found.classes, name)
        if found.val is None:
            rest, part = stratified(
                found.train.labels, self.val_share, seed=self.split_seed, classes=found.classes, key="data.val_share"
            )
            found = found._replace(train=found.train.take(rest), val=found.train.take(part))
        self._splits = found

    @property
    def splits(self) -> Splits:
        assert self._splits is not None, "setup() comes first"
        return self._splits

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels, from train."""
        return self.splits.classes

    def split(self, name: Split) -> ImageSet:
        """One split; DataError where the set has none of that name."""
        found: ImageSet | None = getattr(self.splits, name)
        if found is None:
            have = [field for field in ("train", "val", "test") if getattr(self.splits, field) is not None]
            raise DataError(f"{type(self).__name__} has no {name} split, only {', '.join(have)}. Set split={have[-1]}.")
        return found

    def counts(self, name: Split) -> NDArray[np.int64]:
        """Images per class, int64 [K]; zeros where there is no such split."""
        found: ImageSet | None = getattr(self.splits, name)
        return np.bincount(found.labels if found is not None else [], minlength=len(self.classes)).astype(np.int64, copy=False)

    # A run

    def prepare_run(
        self,
        *,
        seed: int,
        batch_size: int | Literal["full"],
        max_device_batch: int,
        num_workers: int | Literal["auto"],
        augment: "Augment | None",
        devices: int,
        sampling: Sampling = "shuffle",
        class_weights: Mapping[str, float] | None = None,
    ) -> BatchPlan:
        """Fixes how the run goes through the data on `devices` processes; returns the parts of its global batch."""
        self.setup()
        train = self.splits.train
        pairs = augment is not None and augment.mixes
        self._plan = plan_batches(
            batch_size=batch_size, samples=len(train), devices=devices, max_device_batch=max_device_batch, pairs=pairs
        )
        self._order = training_order(sampling, class_weights or {}, labels=train.labels, classes=self.classes, seed=seed)
        self._training = train.for_training(augment, seed)
        self._evaluation_batch = max(self._plan.per_device, min(EVALUATION_BATCH, max_device_batch))
        # torchrun says how many processes share the machine; else it is one machine with all of them.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
        self.workers = worker_count(num_workers, in_memory=self.in_memory, processes_here=here)
        return self._plan

    @property
    def plan(self) -> BatchPlan:
        assert self._plan is not None, "prepare_run() comes first"
        return self._plan

    def train_dataloader(self) -> Loader:
        requests = EpochBatches(
            samples=len(self._training),
            order=self._order,
            epoch=self._epoch,
            batch_size=self.plan.global_size,
            devices=self.plan.devices,
            rank=self._rank(),
            accumulate=self.plan.accumulate,
            keep_single=False,
            pairs=self.plan.pairs,
            most=self.plan.per_device,
            start=self.start,
        )
        return Loader(self._training, requests, num_workers=self.workers, stoppable=self.plan.devices == 1)

    def val_dataloader(self) -> Loader:
        return self.evaluation_loader(self.split("val"))

    def test_dataloader(self) -> Loader:
        return self.evaluation_loader(self.split("test"))

    def evaluation_loader(self, images: ImageSet) -> Loader:
        """Every image once over all ranks, in order; a rank may get an empty last batch, so that all have equally many."""
        requests = EpochBatches(
            samples=len(images),
            order=sequential_order(len(images)),
            epoch=lambda: 0,
            batch_size=self._evaluation_batch * self.plan.devices,
            devices=self.plan.devices,
            rank=self._rank(),
            accumulate=1,
            keep_single=True,
        )
        return Loader(images, requests, num_workers=self.workers, stoppable=self.plan.devices == 1)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Notes the images that were left out, and sends the rest on."""
        self._bad.update(batch.bad)
        return batch._replace(bad=())

    def bad_images(self) -> list[str]:
        """Paths of the images that this process has left out so far (on_bad_image: skip)."""
        return sorted(self._bad)

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _rank(self) -> int:
        if self.trainer is None:
            return 0
        assert self.trainer.world_size == self.plan.devices, "prepare_run() was told another number of devices"
        return self.trainer.global_rank
