"""The figures of a checkpoint on labelled images: the images to measure on, and the measuring, on one process or several."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

from imgrec.config.schema import Node
from imgrec.distributed.worker_group import WorkerGroup, contiguous_shares
from imgrec.distributed.world import world
from imgrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from imgrec.data.batch import ImageSet
    from imgrec.data.decode import Preprocessing
    from imgrec.data.folder import BadImage
    from imgrec.inference.checkpoint import Checkpoint
    from imgrec.inference.metrics import Report
    from imgrec.inference.predictor import Predictor


Split = Literal["test", "val", "train"]


def evaluation_images(
    stored: "Checkpoint", *, split: Split, folder: str | None, changes: Node
) -> "tuple[ImageSet, Tensor | None]":
    """The images to measure on, and the training counts per class (int64 [K]), which class weights follow; None for a folder.

    `changes` replace keys of the stored data config; those that are None do not. ConfigError for a key that the set does not
    have, DataError for classes that are not the checkpoint's.
    """
    import torch

    from imgrec.config.annotations import describe_type, matches_type
    from imgrec.config.instantiate import instantiate, locate, parameter_types
    from imgrec.data.datasets import ImageFolder
    from imgrec.data.folder import folder_split

    changes = {key: value for key, value in changes.items() if value is not None}
    takes = parameter_types(ImageFolder if folder is not None else locate(stored.run.data["_target_"]))
    name = stored.run.data["_target_"].rpartition(".")[2]
    for key, value in changes.items():
        if folder is not None and key != "on_bad_image_eval":
            raise ConfigError(f"data.{key}={value} has no effect beside folder={folder}. Leave one of them out.")
        if key not in takes:
            raise ConfigError(f"data.{key}={value} has no effect: the run's data, {name}, has no such key. Leave it out.")
        if not matches_type(value, takes[key]):
            raise ConfigError(f"data.{key}={value}: {key} takes {describe_type(takes[key])}.")
    if folder is not None:
        bad = cast("BadImage", ({"on_bad_image_eval": "refuse"} | stored.run.data | changes)["on_bad_image_eval"])
        preprocessing = cast("Preprocessing", stored.preprocessing)
        return folder_split(folder, stored.classes, preprocessing, on_bad_image=bad, on_bad_image_eval=bad), None
    data = instantiate(stored.run.data, **changes)
    data.num_classes = None  # compared by name below, not by number
    data.setup()
    if data.classes != stored.classes:
        raise DataError(_other_classes(stored, data.classes, name))
    return data.split(split), torch.from_numpy(data.counts("train"))


def _other_classes(stored: "Checkpoint", found: tuple[str, ...], name: str) -> str:
    where = stored.run.data.get("root", name)
    new, gone = sorted(set(found) - set(stored.classes)), sorted(set(stored.classes) - set(found))
    parts = [
        f"{what} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in (("new:", new), ("gone:", gone)) if names
    ]
    return (
        f"{where} has {len(found)} classes now, but the checkpoint was trained on {len(stored.classes)} "
        f"({'; '.join(parts) or 'in another order'}). Set data.root=FOLDER as it was, or folder=DIR to measure on DIR/CLASS/*."
    )


def measure_split(
    recognizer: "Predictor",
    images: "ImageSet",
    counts: "Tensor | None",
    *,
    batch_size: int | None,
    num_workers: int | Literal["auto"],
    crew: WorkerGroup,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> "tuple[Report, list[str]]":
    """The report of the checkpoint on `images`, and paths of what could not be read (on_bad_image_eval: skip).

    The same steps as the test at the end of training, so the same figures. Each process of the crew measures its share, all must call it, and all get
    the whole. `watch` is told how many of this process' images are done, after each batch, and how many there are.
    """
    import numpy as np
    import torch

    from imgrec.data.datamodule import EVALUATION_BATCH
    from imgrec.data.folder import ImageFiles
    from imgrec.data.loader import Loader, worker_count
    from imgrec.data.sampler import EpochBatches
    from imgrec.inference.predictor import weighted_loss

    found = crew.everywhere(len(images))
    if len(set(found)) > 1:
        raise DataError(f"the processes found {min(found)} to {max(found)} images. Give all machines the same files.")
    size = batch_size or min(EVALUATION_BATCH, recognizer.stored.run.max_device_batch)
    share = contiguous_shares(len(images), size, crew.size)[crew.rank]
    requests = EpochBatches(
        samples=len(share),
        order=lambda epoch: np.arange(share.start, share.stop),
        epoch=lambda: 0,
        batch_size=size,
        devices=1,
        rank=0,
        accumulate=1,
        keep_single=True,
    )
    count = worker_count(num_workers, in_memory=not isinstance(images, ImageFiles), processes_here=world().local_size)
    classifier, device = recognizer.classifier, recognizer.device
    classifier.loss = weighted_loss(recognizer.stored, counts).to(device)
    tally = classifier.tally.to(device)
    tally.reset()
    with torch.inference_mode():  # a process without images has none to add, and compute() warns of a metric without any update
        tally.update(
            torch.zeros(0, len(recognizer.classes), device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
            torch.zeros(0, device=device),
        )
    bad: list[str] = []
    done = 0
    for number, batch in enumerate(Loader(images, requests, num_workers=count)):
        crew.do(f"measuring batch {number + 1} of {len(requests)}")
        bad += batch.bad
        if len(batch.labels):
            with recognizer.inference(size):
                moved = batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))
                classifier.test_step(moved, number)
        done += len(batch.labels) + len(batch.bad)
        watch(done, len(share))
    bad = [path for part in crew.everywhere(bad) for path in part]
    if len(bad) == len(images):
        raise DataError(f"none of {len(images)} images could be read; the first is {bad[0]}. Name a folder of whole images.")
    if crew.group is not None:
        tally.cpu()  # its group is gloo's
    classifier.on_test_epoch_end()
    assert classifier.test_report is not None
    return classifier.test_report, bad
