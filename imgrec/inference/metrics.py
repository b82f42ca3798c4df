"""Counts that are summed on the device, and the metrics that follow from their confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from imgrec.analysis.intervals import macro_intervals, share_interval
from imgrec.analysis.scores import ProbabilityScores, matthews_correlation
from imgrec.errors import DataError


class TallySums(NamedTuple):
    """The sums of a ConfusionTally over all processes."""

    confusion: Tensor  # int64 [K, K], rows are the true classes, columns the predicted ones
    top5_hits: Tensor  # int64 []
    loss_sum: Tensor  # float64 [], float32 with Apple's MPS


def exact_float() -> torch.dtype:
    """Of sums over an epoch: float32 loses its small losses; Apple's MPS has no float64."""
    return torch.float32 if torch.backends.mps.is_available() else torch.float64


class ConfusionTally:
    """Sums over samples, added up over the processes when computed. `update` never waits for the device.

    Plain tensors, no buffers of a module: DDP and FSDP would set those to the first rank's. No torchmetrics: its import takes a
    second (scipy, matplotlib), two of its MeanMetric 108 us a step, plain sums 5.
    """

    def __init__(self, *, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.top5_hits = torch.zeros((), dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=exact_float(), device=device)

    def update(self, scores: Tensor, labels: Tensor, losses: Tensor) -> None:
        """scores: float [B, K], logits or probabilities; labels: int64 [B]; losses: float [B]."""
        scores = scores.detach()
        cells = labels * self.num_classes + scores.argmax(dim=1)
        # Not bincount: on CUDA it reads its maximum back to the host.
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        best = scores.topk(min(5, self.num_classes), dim=1).indices
        self.top5_hits += (best == labels[:, None]).sum()
        self.loss_sum += losses.detach().to(self.loss_sum.dtype).sum()

    def cpu(self) -> None:
        """Go on on the CPU, where gloo adds up."""
        self.confusion, self.top5_hits, self.loss_sum = self.confusion.cpu(), self.top5_hits.cpu(), self.loss_sum.cpu()

    def compute(self) -> TallySums:
        """Of all processes, which must all call it: one sum of K^2 numbers."""
        whole = torch.cat([self.confusion.view(-1), self.top5_hits[None]])
        loss_sum = self.loss_sum.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(whole)
            distributed.all_reduce(loss_sum)
        return TallySums(whole[:-1].view_as(self.confusion), whole[-1], loss_sum)

    def report(self, classes: Sequence[str]) -> "Report":
        """The report over all processes, which must all call it. classes: K names in the order of the labels."""
        counts = self.compute()
        loss = (counts.loss_sum / counts.confusion.sum()).item()
        return make_report(counts.confusion.cpu(), top5_hits=int(counts.top5_hits), loss=loss, classes=classes)


@dataclass(frozen=True)
class Report:
    """The metrics of one split. Shares are from 0 to 1; macro metrics are plain means over the classes that have samples.

    An interval is [low, high] at 95%, from `imgrec.analysis.intervals`. What needs probabilities is None without `with_scores`,
    and but for log_loss also where the probability of every class was not kept.
    """

    count: int  # samples
    loss: float  # mean over the samples, of the loss that was trained with
    accuracy: float
    accuracy_interval: list[float]
    top5: float | None  # None where there are at most 5 classes
    top5_interval: list[float] | None
    macro_precision: float
    macro_recall: float
    macro_recall_interval: list[float]
    macro_f1: float
    macro_f1_interval: list[float]
    balanced_accuracy: float  # another name of macro_recall
    matthews_correlation: float
    absent_classes: list[str]  # without samples: left out of the macro metrics
    # name, precision, precision_interval, recall, recall_interval, f1, support, auroc, average_precision: 0.0 where a denominator is 0
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]  # rows are the true classes
    log_loss: float | None = None
    brier: float | None = None
    macro_auroc: float | None = None  # one class against the rest; over the classes that have it
    macro_average_precision: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for JSON."""
        return asdict(self)

    def with_scores(self, scores: ProbabilityScores) -> "Report":
        """With what needs the probabilities."""
        auroc, precision = _known(scores.auroc, self), _known(scores.average_precision, self)
        rows = zip(self.per_class, auroc, precision, strict=True)
        return replace(
            self,
            log_loss=scores.log_loss,
            brier=scores.brier,
            macro_auroc=_mean(auroc),
            macro_average_precision=_mean(precision),
            per_class=[row | {"auroc": area, "average_precision": average} for row, area, average in rows],
        )


def _known(values: npt.NDArray[np.float64] | None, report: Report) -> list[float | None]:
    return [None] * len(report.per_class) if values is None else [None if np.isnan(value) else value for value in values.tolist()]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _share(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def make_report(confusion: npt.ArrayLike, *, top5_hits: int, loss: float, classes: Sequence[str]) -> Report:
    """confusion: int64 [K, K], rows true; top5_hits: samples whose class is among the five best; loss: mean; classes: K names.

    A share whose denominator is 0 is 0 (scikit-learn's zero_division=0). DataError where there is no sample.
    """
    matrix = np.asarray(confusion, dtype=np.int64)
    assert matrix.shape == (len(classes), len(classes)), (matrix.shape, len(classes))
    count = int(matrix.sum())
    if not count:
        raise DataError(
            "data.on_bad_image_eval=skip: none of the images to measure on could be read. "
            "Replace them, or set data.on_bad_image_eval=refuse to see which."
        )
    sums = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    hits, support, predicted = (part.astype(np.float64) for part in sums)
    precision, recall, f1 = _share(hits, predicted), _share(hits, support), _share(2 * hits, support + predicted)
    present = support > 0
    macro = macro_intervals(matrix)
    has_top5 = len(classes) > 5
    recall_intervals, precision_intervals = share_interval(hits, support).tolist(), share_interval(hits, predicted).tolist()
    return Report(
        count=count,
        loss=loss,
        accuracy=float(hits.sum() / count),
        accuracy_interval=share_interval(hits.sum(), count).tolist(),
        top5=top5_hits / count if has_top5 else None,
        top5_interval=share_interval(top5_hits, count).tolist() if has_top5 else None,
        macro_precision=float(precision[present].mean()),
        macro_recall=float(recall[present].mean()),
        macro_recall_interval=macro["recall"].tolist(),
        macro_f1=float(f1[present].mean()),
        macro_f1_interval=macro["f1"].tolist(),
        balanced_accuracy=float(recall[present].mean()),
        matthews_correlation=matthews_correlation(matrix),
        absent_classes=[name for name, there in zip(classes, present, strict=True) if not there],
        per_class=[
            {
                "name": name,
                "precision": float(precision[k]),
                "precision_interval": precision_intervals[k],
                "recall": float(recall[k]),
                "recall_interval": recall_intervals[k],
                "f1": float(f1[k]),
                "support": int(support[k]),
                "auroc": None,
                "average_precision": None,
            }
            for k, name in enumerate(classes)
        ],
        confusion=matrix.tolist(),
    )


def worst_classes(report: Report, n: int) -> list[dict[str, Any]]:
    """The n rows of per_class with samples that have the lowest F1, the lower recall first among equals, then in class order."""
    present = [row for row in report.per_class if row["support"] > 0]
    return sorted(present, key=lambda row: (row["f1"], row["recall"]))[:n]
