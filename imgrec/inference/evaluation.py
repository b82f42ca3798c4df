"""The figures of a checkpoint on labelled images: the images to measure on, and the measuring, on one process or several."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imgrec.config.annotations import check_type, format_value
from imgrec.config.instantiate import instantiate, locate, parameter_types
from imgrec.config.schema import Node, Split
from imgrec.data.batch import Request
from imgrec.data.datasets import ImageFolder
from imgrec.data.folder import BadImage, ImageFiles, folder_split
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.data.loader import Loader, worker_count
from imgrec.data.sampler import EVALUATION_BATCH
from imgrec.distributed.worker_group import WorkerGroup, contiguous_shares
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, DataError
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.metrics import ConfusionTally, Report
from imgrec.models.losses import Loss


class Scorer(Protocol):
    """What is evaluated (imgrec.inference.predictor.Predictor): a checkpoint's network on a device."""

    checkpoint: Checkpoint
    device: torch.device

    def inference(self, batch_size: int) -> AbstractContextManager[None]: ...

    def logits(self, images: Tensor) -> Tensor: ...


def evaluation_images(
    checkpoint: Checkpoint, *, split: Split, folder: str | None, changes: Node
) -> tuple[ImageSet, Tensor | None]:
    """The images to measure on, and the training counts per class (int64 [K]), which class weights follow; None for a folder.

    `changes` replace keys of the stored data config; those that are None do not. ConfigError for a key that the set does not
    have, DataError for classes that are not the checkpoint's.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    node = checkpoint.run.data.to_node()
    _check_changes(changes, node, folder)
    if folder is not None:
        bad = cast(BadImage, ({"on_bad_image_eval": "refuse"} | node | changes)["on_bad_image_eval"])
        return folder_split(folder, checkpoint.classes, checkpoint.preprocessing, on_bad_image=bad, on_bad_image_eval=bad), None
    data: ImageData = instantiate(node, **changes)
    if data.classes != checkpoint.classes:
        raise DataError(_other_classes(checkpoint.classes, data.classes, str((node | changes).get("root", _set_name(node)))))
    return data.split(split), torch.from_numpy(data.counts("train"))


def _check_changes(changes: Node, node: Node, folder: str | None) -> None:
    types = parameter_types(ImageFolder if folder is not None else locate(node["_target_"]))
    for key, value in changes.items():
        override = f"data.{key}={format_value(value)}"
        if folder is not None and key != "on_bad_image_eval":
            raise ConfigError(f"{override} has no effect beside folder={folder}. Leave one of them out.")
        if key not in types:
            raise ConfigError(f"{override} has no effect: the run's data, {_set_name(node)}, has no such key. Leave it out.")
        check_type(f"data.{key}", value, types[key])


def _set_name(node: Node) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _other_classes(stored: tuple[str, ...], now: tuple[str, ...], where: str) -> str:
    new, gone = sorted(set(now) - set(stored)), sorted(set(stored) - set(now))
    parts = [
        f"{what} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in (("new:", new), ("gone:", gone)) if names
    ]
    return (
        f"{where} has {len(now)} classes now, but the checkpoint was trained on {len(stored)} "
        f"({'; '.join(parts) or 'in another order'}). Set data.root=FOLDER as it was, or folder=DIR to measure on DIR/CLASS/*."
    )


def measure_split(
    scorer: Scorer,
    images: ImageSet,
    counts: Tensor | None,
    *,
    batch_size: int | None,
    num_workers: int | Literal["auto"],
    group: WorkerGroup,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Report, list[str]]:
    """The report of the checkpoint on `images`, and paths of what could not be read (on_bad_image_eval: skip).

    The same computation as the test at the end of training, so the same figures. Each process of the group measures its
    share, all must call it, and all get the whole. `watch` is called after each batch, with how many of this process'
    images are done and how many there are.
    """
    sizes = group.all_gather(len(images))
    if len(set(sizes)) > 1:
        raise DataError(f"the processes found {min(sizes)} to {max(sizes)} images. Give all machines the same files.")
    checkpoint, device = scorer.checkpoint, scorer.device
    size = batch_size or min(EVALUATION_BATCH, checkpoint.run.max_device_batch)
    share = contiguous_shares(len(images), size, group.size)[group.rank]
    parts = [np.arange(start, min(start + size, share.stop)) for start in share[::size]]
    requests = [Request(0, indices, len(indices)) for indices in parts]
    workers = worker_count(num_workers, in_memory=not isinstance(images, ImageFiles), processes_here=read_world().local_size)
    loss = checkpoint_loss(checkpoint, counts).to(device)
    tally = ConfusionTally(num_classes=len(checkpoint.classes)).to(device)
    empty = torch.zeros(0, len(checkpoint.classes), device=device)
    # A process may have no images, and torchmetrics warns of a metric that was never updated.
    tally.update(empty, torch.zeros(0, dtype=torch.int64, device=device), empty.sum(1))
    bad: list[str] = []
    done = 0
    with closing(Loader(images, requests, num_workers=workers)) as batches:
        for number, batch in enumerate(batches, 1):
            group.set_status(f"measuring batch {number} of {len(requests)}")
            bad += batch.bad
            if len(batch.labels):
                labels = batch.labels.to(device)
                with scorer.inference(size):
                    logits = scorer.logits(batch.images)
                    targets = functional.one_hot(labels, len(checkpoint.classes)).to(logits.dtype)
                    tally.update(logits, labels, loss(logits, targets))
            done += len(batch.labels) + len(batch.bad)
            watch(done, len(share))
    bad = [path for part in group.all_gather(bad) for path in part]
    if len(bad) == len(images):
        raise DataError(f"none of {len(images)} images could be read; the first is {bad[0]}. Name a folder of whole images.")
    if group.process_group is not None:
        tally.cpu()  # its process group is gloo's
    return tally.report(checkpoint.classes), bad


def checkpoint_loss(checkpoint: Checkpoint, counts: Tensor | None) -> Loss:
    """The run's loss, with its class weights where the training counts (int64 [K]) are known."""
    loss = instantiate(checkpoint.run.loss, **({} if counts is not None else {"class_weights": "none"}))
    assert isinstance(loss, Loss)
    if counts is not None:
        loss.set_class_counts(counts)
    return loss
