"""logger=tensorboard: curves, pictures, histograms and charts in event files, which imgrec.training.event_files cuts for a resumed run."""

from collections.abc import Mapping

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

Charts = Mapping[str, Mapping[str, list[str]]]  # page -> title -> tags of the curves in it


class ResumableTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger with the pictures, histograms and charts of a run; on the first rank."""

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture under `name` at a step."""
        self.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def log_histogram(self, name: str, values: Tensor, step: int) -> None:
        """A histogram of all the values under `name` at a step."""
        self.experiment.add_histogram(name, values, step)

    def log_charts(self, charts: Charts) -> None:
        """Charts with several curves each, on the page "Custom scalars"."""
        self.experiment.add_custom_scalars(
            {page: {title: ["Multiline", tags] for title, tags in found.items()} for page, found in charts.items()}
        )
