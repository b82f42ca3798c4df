"""What the runs of a cross-validation say of all training images: each by the run that was not trained on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgrec.analysis.scores import probability_scores
from imgrec.config.schema import Node
from imgrec.errors import ConfigError, DataError, plural
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.inference.evaluation import stored_data
from imgrec.inference.held_out import measure_here
from imgrec.inference.metrics import Report, make_report
from imgrec.inference.prediction_table import PredictionFiles
from imgrec.inference.predictor import Predictor
from imgrec.inference.split_predictions import SplitPredictions, write_predictions


def pool_folds(folders: Sequence[Path], files: PredictionFiles) -> tuple[Report, list[Report]]:
    """The report on all images, and that of each run on its fold; writes the files, by the pool of the data."""
    reports: list[Report] = []
    parts: list[SplitPredictions] = []
    for folder in folders:
        checkpoint = load_checkpoint(folder)
        data = stored_data(checkpoint, {})
        if data.fold is None:
            raise ConfigError(f"{folder} is no run of a fold. Remove it, and start the same command again.")
        counts = torch.from_numpy(data.counts("train"))
        measured = measure_here(Predictor(checkpoint), data.split("val"), counts, timeout_s=checkpoint.run.trainer.timeout_s)
        assert measured.predictions is not None, "one process"
        rows = np.flatnonzero(data.held_out)[measured.predictions.indices]
        reports.append(measured.report)
        parts.append(measured.predictions._replace(indices=rows))
    each, count = np.unique(np.concatenate([part.indices for part in parts]), return_counts=True)
    if len(twice := each[count > 1]):
        raise DataError(
            f"{plural(len(twice), 'image')} of {folders[0].parent} are in two folds, as the images changed while they were trained. "
            "Set resume=false to train all folds anew."
        )
    pool = data.pool
    order = np.argsort(np.concatenate([part.indices for part in parts]))
    columns = ("indices", "predicted", "probability", "true_probability", "probabilities")
    pooled = SplitPredictions(**{name: np.concatenate([getattr(part, name) for part in parts])[order] for name in columns})
    labels = pool.labels[pooled.indices]
    report = make_report(
        np.sum([part.confusion for part in reports], axis=0),
        top5_hits=sum(round((part.top5 or 0) * part.count) for part in reports),
        loss=float(np.average([part.loss for part in reports], weights=[part.count for part in reports])),
        classes=data.classes,
    ).with_scores(probability_scores(pooled.probabilities, pooled.true_probability, labels))
    write_predictions(files, pooled, pool, data.classes)
    return report, reports


def fold_result(report: Report, result: dict[str, Any]) -> Node:
    """A row of the table: the figures of a run on its fold, and those of its test by its result.json."""
    test = result["test"]
    return {
        "count": report.count,
        "accuracy": report.accuracy,
        "accuracy_interval": report.accuracy_interval,
        "macro_f1": report.macro_f1,
        "test": None if test is None else {key: test[key] for key in ("count", "accuracy", "accuracy_interval", "macro_f1")},
        "seconds": result["train_seconds"],
    }
