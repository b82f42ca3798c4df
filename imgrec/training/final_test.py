"""The test at the end of a run."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl

from imgrec.config.schema import Node, RunConfig
from imgrec.data.datamodule import DataModule
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.inference.metrics import Report
from imgrec.inference.split_predictions import SplitPredictions, scores_of
from imgrec.training.calibrate import calibrate, calibration_result
from imgrec.training.extension import measure_extension
from imgrec.training.module import Classifier
from imgrec.training.tested_checkpoint import Tested


class Tests(NamedTuple):
    """Of the test at the end of a run; without a test split the first two are None."""

    report: Report | None
    predictions: SplitPredictions | None  # on rank 0
    calibration: Node  # of `calibration_result`
    bad_images: list[str]  # that could not be read, of all splits and ranks
    extended: Node | None  # of `measure_extension`


def test_network(
    run: RunConfig,
    trainer: pl.Trainer,
    classifier: Classifier,
    loaders: DataModule,
    tested: Tested,
    folder: Path,
    group: WorkerGroup,
) -> Tests:
    """Test a checkpoint of `folder` with its temperature, which is fitted first. Loads its weights into `classifier`."""
    classifier.load_state_dict(tested.content["state_dict"])
    calibration = calibrate(trainer, classifier, loaders, tested, folder, group)
    report: Report | None = None
    predictions: SplitPredictions | None = None
    if loaders.data.counts("test").any():
        classifier.temperature = 1.0 if isinstance(calibration, str) else calibration.temperature
        trainer.test(classifier, datamodule=loaders, verbose=False)
        predictions = classifier.predictions.gather(group)
        report = classifier.test_report.with_scores(scores_of(predictions, loaders.data.split("test"), group))
    labels = loaders.data.split("test").labels if report else np.empty(0, dtype=np.int64)
    bad_images = sorted({path for paths in group.all_gather(loaders.bad_images()) for path in paths})
    extended = measure_extension(run, loaders.data, predictions, group)
    found = on_first_rank(lambda: calibration_result(calibration, predictions, labels))
    return Tests(report, predictions, found, bad_images, extended)
