"""A network on corrupted images: the same images once for each corruption and severity, in one pass of the loader."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imgrec.analysis.robustness import Robustness, measure_robustness
from imgrec.data.batch import Batch, Request
from imgrec.data.corruption_names import FAMILIES
from imgrec.data.corruptions import SEVERITIES, corrupt
from imgrec.data.image_set import ImageSet
from imgrec.data.loader import Loader, worker_count
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.distributed.world import read_world
from imgrec.errors import plural
from imgrec.inference.device import inference
from imgrec.inference.measure import MeasuredNetwork, evaluation_requests
from imgrec.inference.split_predictions import gather_columns
from imgrec.terminal import duration

TIMED_IMAGES = 4  # that are corrupted to tell how long all will take


class CorruptedRequest(NamedTuple):
    """Images with one corruption."""

    name: str
    severity: int
    request: Request


class CorruptedImages:
    """The source of a Loader: the images of a split, corrupted where they are read."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, wanted: CorruptedRequest) -> Batch:
        batch = self.images[wanted.request]
        corrupted = np.empty(batch.images.shape, dtype=np.uint8)
        for place, (image, index) in enumerate(zip(batch.images.numpy(), batch.indices.tolist(), strict=True)):
            corrupted[place] = corrupt(image, wanted.name, wanted.severity, index=index)
        return batch._replace(images=torch.from_numpy(corrupted))


def announce_corrupted(
    images: ImageSet, names: Sequence[str], num_workers: int | Literal["auto"], *, clean_seconds: float, processes: int
) -> str:
    """'15 corruptions at 5 severities: 75 passes, about 4:10', by the time of a pass without corruptions and of a few images with."""
    rows = np.arange(min(TIMED_IMAGES, len(images)))
    start = time.perf_counter()
    for name in names:
        CorruptedImages(images)[CorruptedRequest(name, 3, Request(0, rows, len(rows)))]
    corrupting = (time.perf_counter() - start) / len(rows) * len(images) * len(SEVERITIES)
    workers = worker_count(num_workers, in_memory=False, processes_here=read_world().local_size)
    passes = len(names) * len(SEVERITIES)
    expected = clean_seconds * passes + corrupting / max(1, workers) / processes
    return f"{plural(len(names), 'corruption')} at {len(SEVERITIES)} severities: {passes} passes, about {duration(expected)}"


def measure_corrupted(
    network: MeasuredNetwork,
    images: ImageSet,
    names: Sequence[str],
    *,
    batch_size: int | None,
    num_workers: int | Literal["auto"],
    group: WorkerGroup,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Robustness | None:
    """The accuracy under each of the corruptions, on rank 0, None on the others; all must call it, and measure their share.

    The same for any batch size, workers and ranks: what is drawn for an image follows from its index in the split. `watch` is
    called as in `measure_images`.
    """
    requests = evaluation_requests(network, images, batch_size, group)
    kinds = [(name, severity) for name in names for severity in SEVERITIES]
    wanted = [CorruptedRequest(name, severity, request) for name, severity in kinds for request in requests]
    workers = worker_count(num_workers, in_memory=False, processes_here=read_world().local_size)
    on_gpu, total = network.device.type == "cuda", sum(len(each.request.indices) for each in wanted)
    columns: list[list[tuple[Tensor, Tensor]]] = [[] for _ in kinds]
    done = 0
    with closing(
        Loader(CorruptedImages(images), wanted, num_workers=workers, timeout_s=group.alone_timeout_s, for_gpu=on_gpu)
    ) as batches:
        for number, batch in enumerate(batches):
            kind = number // len(requests)
            group.set_status(f"measuring {kinds[kind][0]} of severity {kinds[kind][1]}")
            with inference(network.device, network.precision):
                answer = network.logits(batch.images).argmax(dim=1) if len(batch.labels) else batch.labels.to(network.device)
            columns[kind].append((batch.indices, answer == batch.labels.to(network.device)))
            done += len(wanted[number].request.indices)
            watch(done, total)
    empty = torch.zeros(0, dtype=torch.int64)
    merged = [[torch.cat([part[side] for part in kind] or [empty]) for side in (0, 1)] for kind in columns]
    rows: list[tuple[Tensor, ...]] = [(merged[0][0], torch.stack([kind[1] for kind in merged], dim=1).bool())]
    gathered = gather_columns(rows, group)
    if gathered is None:
        return None
    return measure_robustness(names, FAMILIES, gathered[1].reshape(-1, len(names), len(SEVERITIES)))
