"""logger=tensorboard: curves, pictures, histograms and charts in event files, which imgrec.training.event_files cuts for a resumed run."""

from collections.abc import Container, Mapping
from typing import Any

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

    def log_settings(self, settings: dict[str, Any], figures: dict[str, float], step: int, *, first: Container[str]) -> None:
        """A row of the page "HParams", which shows five settings until others are ticked: those in `first` before others."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # with the next 0.15 s
        from torch.utils.tensorboard.summary import hparams

        self.log_metrics(figures, step)
        columns, *row = hparams(settings, figures)  # type: ignore[no-untyped-call]
        stored = columns.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(stored.content)
        for setting in content.experiment.hparam_infos:
            setting.differs = setting.name in first
        stored.content = content.SerializeToString()
        for summary in (columns, *row):
            self.experiment._get_file_writer().add_summary(summary, step)

    def log_charts(self, charts: Charts) -> None:
        """Charts with several curves each, on the page "Custom scalars"."""
        self.experiment.add_custom_scalars(
            {page: {title: ["Multiline", tags] for title, tags in found.items()} for page, found in charts.items()}
        )
