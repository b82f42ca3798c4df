"""Writing checkpoints: Lightning's dictionary plus "imgrec", plain data that loads with weights_only=True."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from imgrec.config.schema import Node, RunConfig
from imgrec.data.split_record import DataRecord
from imgrec.errors import CheckpointError, first_line
from imgrec.files import atomic_file
from imgrec.inference.checkpoint import FORMAT_VERSION, package_versions, read_checkpoint, weights_hash
from imgrec.inference.metadata import TEACHER
from imgrec.paths import BEST, LAST, PREVIOUS
from imgrec.training.resume_point import ResumePoint


def checkpoint_metadata(
    run: RunConfig, classes: tuple[str, ...], preprocessing: Mapping[str, Any], teacher: Node | None = None
) -> Node:
    """The metadata with which a checkpoint is evaluated and predicts without `model=` or `data=`. teacher: its `metadata`."""
    metadata = {
        "version": FORMAT_VERSION,
        "config": run.to_dict(),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "data": None,  # DataRecord.pack, by CheckpointWriter
        "versions": package_versions(),
    }
    return metadata if teacher is None else metadata | {TEACHER: teacher}


class CheckpointWriter(TorchCheckpointIO):
    """Writes in a thread, so that training continues, to a temporary name that is renamed at the end.

    The checkpoint is copied before `save_checkpoint` returns. The next save or `wait` raises an error of the thread.
    `weights`: the hash of the weights in the newest file of each name; that of best.ckpt stands in last.ckpt too.
    """

    def __init__(self, metadata: Node, resume: ResumePoint | None = None, record: DataRecord | None = None) -> None:
        """metadata: of `checkpoint_metadata`. resume: has read the checkpoint of the run already, so it is not read again.

        record: of the data, packed in the thread while the run starts, in 0.2 s for a million files.
        """
        super().__init__()
        self.metadata, self._resume = metadata, resume
        self._thread = ThreadPoolExecutor(1, "imgrec-save")
        self._record = None if record is None else self._thread.submit(record.pack)
        self._writing: Future[None] | None = None
        self.seconds = 0.0  # processor time of the last write
        self.weights: dict[str, str] = {} if resume is None or resume.best is None else {BEST: resume.best}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.wait()  # no more than one copy in memory
        self._writing = self._thread.submit(self._write, to_cpu({**checkpoint, "imgrec": self.metadata}), Path(path))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        start = time.thread_time()
        self.weights[path.name] = weights_hash(checkpoint)
        if "resume" in checkpoint:
            checkpoint["resume"]["best"] = self.weights.get(BEST)
        if self._record is not None:
            checkpoint["imgrec"]["data"] = self._record.result()
        write_checkpoint(checkpoint, path)
        self.seconds = time.thread_time() - start

    def wait(self) -> None:
        """Wait until the last checkpoint is written; CheckpointError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    teardown = wait  # Lightning's hook at the end of the training, after which the test may follow

    def close(self) -> None:
        """End the thread, after what it writes."""
        self._thread.shutdown()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint, checked, with its tensors in CPU memory."""
        if self._resume is not None and Path(path) == self._resume.file:
            return self._resume.load()
        return read_checkpoint(path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint file, whole or not at all; the last.ckpt before it becomes previous.ckpt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(path, previous=path.with_name(PREVIOUS) if path.name == LAST else None) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # after a short write torch fails to close its archive too
        kept = f" The checkpoint before it, {path}, is whole." if path.is_file() else ""
        short = error.__context__ if isinstance(error, RuntimeError) else error
        reason = short.strerror if isinstance(short, OSError) and short.strerror else first_line(error)
        raise CheckpointError(
            f"{path} cannot be written: {reason}.{kept} Free disk space, then start the same command again to resume."
        ) from error


def to_cpu(value: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples whose tensors are in CPU memory of their own."""
    return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
