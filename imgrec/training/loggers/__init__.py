"""Lightning's loggers, continued by a resumed run: the same run in the same place, and no point twice."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

Points = Mapping[str, float]


@runtime_checkable
class PictureLogger(Protocol):
    """A logger that shows pictures: tensorboard, wandb, mlflow."""

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture under `name`, such as val/recall, at a step."""


@runtime_checkable
class HistogramLogger(Protocol):
    """A logger that shows histograms: tensorboard, wandb."""

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        """A histogram of all the values, on any device, under `name` at a step."""


def new_points(metrics: Points, step: int | None, last_steps: Mapping[str, int]) -> dict[str, float]:
    """The metrics without those that were logged at this step or a later one before the run was interrupted.

    `last_steps`: the last step of each metric at the start of this process. A run resumes from its last checkpoint, so it passes
    some steps again; on the same number of processes with the same values.
    """
    return {name: value for name, value in metrics.items() if step is None or step > last_steps.get(name, -1)}
