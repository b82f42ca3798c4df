"""The temperature of the weights that are tested, fitted on the validation images and stored with them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgrec.analysis.calibration import fit_temperature, log_loss_at
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.config.schema import Node
from imgrec.data.datamodule import DataModule
from imgrec.distributed.process_group import on_first_rank
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import plural
from imgrec.inference.calibration import CALIBRATION, Calibration
from imgrec.inference.checkpoint import weights_hash
from imgrec.inference.reliability import measure_reliability, reliability_sentence
from imgrec.inference.split_predictions import SplitPredictions
from imgrec.models.losses import Loss, is_softmax
from imgrec.training.checkpoint import write_checkpoint
from imgrec.training.module import Classifier
from imgrec.training.tested_checkpoint import Tested

LEAST_A_CLASS = 2  # validation images for each class, on average, without which no temperature is fitted


def calibrate(
    trainer: pl.Trainer, classifier: Classifier, loaders: DataModule, tested: Tested, folder: Path, group: WorkerGroup
) -> Calibration | str:
    """Fit the temperature of the weights in `classifier`, those of `tested`, and store it in that checkpoint of `folder`.

    Gives it on all ranks, or the reason why there is none. One that is stored is kept. Calls collectives.
    """
    info = tested.content["imgrec"]
    if CALIBRATION in info:
        return Calibration.unpack(info[CALIBRATION], classes=len(classifier.classes))
    if reason := _obstacle(classifier.loss, loaders.images_read("val"), len(classifier.classes)):
        return reason
    trainer.predict(classifier, datamodule=loaders, return_predictions=False)
    found = classifier.validation.gather(group)

    def fit() -> Calibration | str:
        assert found is not None
        logits, labels = found
        if reason := _obstacle(classifier.loss, len(labels), len(classifier.classes)):
            return reason  # some could not be read
        device = trainer.strategy.root_device
        fitted = fit_calibration(logits, labels, torch.device("cpu") if device.type == "mps" else device)  # which has no float64
        if isinstance(fitted, Calibration):
            fitted = replace(fitted, weights=weights_hash(tested.content))
            content = {**tested.content, "imgrec": {**info, CALIBRATION: fitted.pack()}}
            write_checkpoint(content, folder / tested.name)
        return fitted

    return on_first_rank(fit)


def _obstacle(loss: Loss, images: int, classes: int) -> str | None:
    """Why no temperature can be fitted."""
    if not images:
        return "there are no validation images"
    if not is_softmax(loss):
        return f"the probabilities of the loss {type(loss).__name__} are no softmax of its logits"
    if images < LEAST_A_CLASS * classes:
        few = "is" if images == 1 else "are"
        return f"{plural(images, 'validation image')} {few} too few for {classes} classes, which need {LEAST_A_CLASS * classes}"
    return None


def fit_calibration(logits: Tensor, labels: Tensor, device: torch.device) -> Calibration | str:
    """logits: float32 [N, K], labels: int64 [N], of validation images. A reason where the logits are not finite."""
    scores, truth = logits.to(device), labels.to(device)
    temperature = fit_temperature(scores, truth)
    before, after = (log_loss_at(value, scores, truth) for value in (1.0, temperature))
    if not math.isfinite(before + after):
        return "the network's answer to a validation image is not finite"
    probabilities = (logits / temperature).softmax(dim=1).numpy()
    return Calibration(temperature, before, after, len(labels), ValidationRecord.of(probabilities, labels.numpy()))


def calibration_result(calibration: Calibration | str, predictions: SplitPredictions | None, labels: NDArray[np.int64]) -> Node:
    """For result.json: the temperature, or why there is none, and how far the probabilities of the test hold. labels: of the test split."""
    if isinstance(calibration, str):
        node: Node = {"temperature": None, "reason": calibration}
    else:
        node = {name: getattr(calibration, name) for name in ("temperature", "log_loss_before", "log_loss_after", "images")}
        node["reason"] = None
        if calibration.temperature == 1:
            node["reason"] = f"all of {plural(calibration.images, 'validation image')} are right"
    test = None if predictions is None else measure_reliability(predictions, labels, node["temperature"] or 1.0)
    return node | {"test": test}


def calibration_sentence(node: Node) -> str:
    """'calibration error 4.1% (3.2 to 5.0), 1.2% with temperature 1.43' of a `calibration_result`."""
    test, reason = node["test"], node["reason"]
    none = "" if reason is None else f"no temperature was fitted: {reason}"
    if test is not None:
        return "; ".join(filter(None, [reliability_sentence(test), none]))
    if reason is not None:
        return none
    losses = f"log loss {node['log_loss_after']:.4f} instead of {node['log_loss_before']:.4f}"
    return f"temperature {node['temperature']:.2f}: {losses} on {plural(node['images'], 'validation image')}"
