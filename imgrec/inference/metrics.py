"""Counts that are summed on the device, and the metrics that follow: all of them come from one confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, distributed

from imgrec.errors import DataError, first_names


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
    """The metrics of one split. Shares are from 0 to 1; macro metrics are plain means over the classes that have samples."""

    count: int  # samples
    loss: float  # mean over the samples
    accuracy: float
    top5: float | None  # None where there are at most 5 classes
    macro_precision: float
    macro_recall: float
    macro_f1: float
    absent_classes: list[str]  # without samples: left out of the macro metrics
    per_class: list[dict[str, Any]]  # name, precision, recall, f1, support; 0.0 where a denominator is 0
    confusion: list[list[int]]  # rows are the true classes

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for JSON."""
        return asdict(self)


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
    return Report(
        count=count,
        loss=loss,
        accuracy=float(hits.sum() / count),
        top5=top5_hits / count if len(classes) > 5 else None,
        macro_precision=float(precision[present].mean()),
        macro_recall=float(recall[present].mean()),
        macro_f1=float(f1[present].mean()),
        absent_classes=[name for name, there in zip(classes, present, strict=True) if not there],
        per_class=[
            {"name": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        ],
        confusion=matrix.tolist(),
    )


def worst_classes(report: Report, n: int) -> list[dict[str, Any]]:
    """The n rows of per_class with samples that have the lowest F1, the lower recall first among equals, then in class order."""
    present = [row for row in report.per_class if row["support"] > 0]
    return sorted(present, key=lambda row: (row["f1"], row["recall"]))[:n]


def print_report(report: Report, console: Console, *, most: int) -> None:
    """Prints the metrics per class, worst F1 first where there are more than `most` classes, and the totals.

    On a terminal with rules; elsewhere plain aligned columns without control characters.
    """
    rows = report.per_class if len(report.per_class) <= most else worst_classes(report, most)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    table.add_column("class" if len(rows) == len(report.per_class) else f"worst {len(rows)} of {len(report.per_class)} classes")
    for heading in ("precision", "recall", "f1", "samples"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(escape(row["name"]), *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")), str(row["support"]))
    macro = (report.macro_precision, report.macro_recall, report.macro_f1)
    table.add_row("macro mean", *(f"{figure:.4f}" for figure in macro), str(report.count), style="bold")
    console.print(table)
    top5 = "" if report.top5 is None else f"   top-5 {report.top5:.4f}"
    console.print(f"accuracy {report.accuracy:.4f}{top5}   loss {report.loss:.4f}   samples {report.count}", highlight=False)
    if report.absent_classes:
        count = f"{len(report.absent_classes)} of {len(report.per_class)} classes"
        console.print(
            f"without samples, so not in the macro mean: {count} ({first_names(report.absent_classes, 5)})",
            highlight=False,
            markup=False,
        )
