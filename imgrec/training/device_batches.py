"""With how many images at once a run can be computed."""

from functools import cached_property

from torch import nn

from imgrec.config.instantiate import build
from imgrec.config.schema import RunConfig
from imgrec.data.augment import Augment
from imgrec.data.sampler import plan_batches
from imgrec.errors import ConfigError
from imgrec.models.summary import trains_on_one


class DeviceBatches:
    """The values of max_device_batch that a run of `samples` images can have: partners of mixup stay together, and batch norm may need two images.

    The classes and the global batch of the run are known.
    """

    def __init__(self, run: RunConfig, *, samples: int, devices: int) -> None:
        self.run, self.samples, self.devices = run, samples, devices

    def allows(self, size: int) -> bool:
        run = self.run
        try:
            plan = plan_batches(
                batch_size=run.global_batch,
                samples=self.samples,
                devices=self.devices,
                max_device_batch=size,
                pairs=self.mixes,
            ).limited(run.trainer.limit_train_batches)
        except ConfigError:
            return False
        return not plan.has_single or not self.needs_two

    def below(self, size: int) -> int | None:
        """Half of `size`, or where that is not allowed the nearest smaller number, or else the nearest greater one; None: there is none."""
        half = size // 2
        return next((number for number in (*range(half, 0, -1), *range(half + 1, size)) if self.allows(number)), None)

    @cached_property
    def mixes(self) -> bool:
        return build("augment", self.run.augment, Augment).mixes

    @cached_property
    def needs_two(self) -> bool:
        """Whether the network cannot be trained on one image of a device."""
        run = self.run
        if run.trainer.sync_batchnorm and self.devices > 1:
            return False
        net = build("model", run.model, nn.Module, num_classes=run.data.num_classes)
        return not trains_on_one(net, channels=run.data.channels, image_size=run.data.image_size)
