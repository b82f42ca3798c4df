"""What a network says of labelled images, on one process or several."""

from collections.abc import Callable
from contextlib import closing
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from imgrec.config.schema import Precision
from imgrec.data.batch import Batch, Request
from imgrec.data.decode import Preprocessing
from imgrec.data.folder import announced, reading_rows
from imgrec.data.image_set import ImageSet
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.loader import Loader, worker_count
from imgrec.data.sampler import EVALUATION_BATCH
from imgrec.data.split_record import DataRecord
from imgrec.distributed.worker_group import WorkerGroup, contiguous_shares
from imgrec.distributed.world import read_world
from imgrec.errors import DataError
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.device import check_memory, inference
from imgrec.inference.metrics import ConfusionTally, Report
from imgrec.inference.rank_data import compare_ranks
from imgrec.inference.split_predictions import PredictionCollector, SplitPredictions, scores_of
from imgrec.models.losses import answered, one_hot


class MeasuredNetwork(Protocol):
    """A Predictor, which imports this module."""

    checkpoint: Checkpoint
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    device: torch.device
    precision: Precision
    temperature: float

    def logits(self, images: Tensor) -> Tensor: ...


class Measured(NamedTuple):
    """The report on labelled images, the predictions on the first rank, paths of what could not be read (on_bad_image_eval: skip)."""

    report: Report
    predictions: SplitPredictions | None
    bad: list[str]


def measure_images(
    network: MeasuredNetwork,
    images: ImageSet,
    counts: Tensor | None,
    *,
    batch_size: int | None,
    num_workers: int | Literal["auto"],
    group: WorkerGroup,
    watch: Callable[[int, int], None] = lambda done, total: None,
    seen: Callable[[Batch], None] = lambda batch: None,
) -> Measured:
    """What the network says of `evaluation_images`.

    The same computation as the test at the end of training, so the same figures. Each process of the group measures its
    share, all must call it, and all get the whole report, but only the first one the predictions. `watch` is called
    after each batch, with how many of this process' images are done and how many there are; `seen` with the batch.
    """
    compare_ranks(DataRecord.of(network.classes, {"test": images}, content=()), group.all_gather)
    requests = evaluation_requests(network, images, batch_size, group)
    classes, share = len(network.classes), sum(len(request.indices) for request in requests)
    workers = worker_count(num_workers, in_memory=isinstance(images, InMemoryImages), processes_here=read_world().local_size)
    loss = network.checkpoint.loss(counts).to(network.device)
    tally = ConfusionTally(num_classes=classes, device=network.device)
    collector = PredictionCollector(images=len(images), classes=classes)
    empty, none = torch.zeros(0, classes, device=network.device), torch.zeros(0, dtype=torch.int64, device=network.device)
    collector.update(empty, empty, none, none, None if network.temperature == 1 else empty)  # a process may have no images
    bad: list[str] = []
    done = 0
    on_gpu = network.device.type == "cuda"
    with closing(
        Loader(images, announced(images, requests), num_workers=workers, timeout_s=group.alone_timeout_s, for_gpu=on_gpu)
    ) as batches:
        for number, batch in enumerate(batches, 1):
            group.set_status(f"measuring batch {number} of {len(requests)}")
            bad += batch.bad
            seen(batch)
            if len(batch.labels):
                labels = batch.labels.to(network.device)
                with inference(network.device, network.precision):
                    logits = network.logits(batch.images)
                    targets = one_hot(labels, classes, logits.dtype)
                    tally.update(logits, labels, loss(logits, targets))
                    answers = answered(loss, logits, network.temperature)
                    collector.update(logits, answers[0], labels, batch.indices.to(network.device), answers[1])
            done += len(batch.labels) + len(batch.bad)
            watch(done, share)
    bad = [path for part in group.all_gather(bad) for path in part]
    if len(bad) == len(images):
        raise DataError(f"none of {len(images)} images could be read; the first is {bad[0]}. Name a folder of whole images.")
    if group.process_group is not None:
        tally.cpu()  # its process group is gloo's
    report, predictions = tally.report(network.classes), collector.gather(group)
    return Measured(report.with_scores(scores_of(predictions, images, group)), predictions, bad)


def evaluation_requests(network: MeasuredNetwork, images: ImageSet, batch_size: int | None, group: WorkerGroup) -> list[Request]:
    """The batches that this rank measures; ConfigError where they do not fit in the memory."""
    most = network.checkpoint.run.max_device_batch
    size = batch_size or (EVALUATION_BATCH if most == "auto" else min(EVALUATION_BATCH, most))  # a run stores what "auto" chose
    check_memory(min(size, len(images)), network.preprocessing)
    share = contiguous_shares(len(images), size, group.size)[group.rank]
    rows = reading_rows(images)
    parts = [rows[start : min(start + size, share.stop)] for start in share[::size]]
    return [Request(0, indices, len(indices)) for indices in parts]
