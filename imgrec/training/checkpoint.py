"""Writing checkpoints: Lightning's dictionary plus "imgrec", plain data that loads with weights_only=True."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from imgrec.config.schema import Node, RunConfig
from imgrec.distributed.process_group import on_first_rank
from imgrec.errors import CheckpointError, DamagedError, first_line
from imgrec.files import atomic_file
from imgrec.inference.checkpoint import FORMAT_VERSION, package_versions, read_checkpoint
from imgrec.training.lightning_compat import LoopPosition

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # the two checkpoints of a run that it can be resumed from


def checkpoint_metadata(run: RunConfig, classes: tuple[str, ...], preprocessing: Mapping[str, Any]) -> Node:
    """The metadata with which a checkpoint is evaluated and predicts without `model=` or `data=`."""
    return {
        "version": FORMAT_VERSION,
        "config": run.to_dict(),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "versions": package_versions(),
    }


class CheckpointWriter(TorchCheckpointIO):
    """Writes in a thread, so that training continues, to a temporary name that is renamed at the end.

    The checkpoint is copied before `save_checkpoint` returns. The next save or `wait` raises an error of the thread.
    """

    def __init__(self, metadata: Node, resume: "ResumePoint | None" = None) -> None:
        super().__init__()
        self.metadata, self._resume = metadata, resume
        self._thread = ThreadPoolExecutor(1, "imgrec-save")
        self._writing: Future[None] | None = None
        self.seconds = 0.0  # processor time of the last write

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.wait()  # no more than one copy in memory
        self._writing = self._thread.submit(self._write, to_cpu({**checkpoint, "imgrec": self.metadata}), Path(path))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        start = time.thread_time()
        write_checkpoint(checkpoint, path)
        self.seconds = time.thread_time() - start

    def wait(self) -> None:
        """Wait until the last checkpoint is written; CheckpointError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    teardown = wait  # Lightning's hook at the end

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
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        kept = f" The checkpoint before it, {path}, is whole." if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise CheckpointError(
            f"{path} cannot be written: {reason}.{kept} Free disk space, then start the same command again to resume."
        ) from error


def to_cpu(value: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples whose tensors are in CPU memory of their own."""
    return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))


@dataclass
class ResumePoint:
    """Where an unfinished run resumes: its newest whole checkpoint, and the "resume" entry of that."""

    file: Path
    state: Node
    checkpoint: dict[str, Any] | None = None  # on rank 0, until it is loaded: training does not hold it in memory

    @property
    def position(self) -> LoopPosition:
        return LoopPosition(**self.state["position"])

    def load(self) -> dict[str, Any]:
        checkpoint, self.checkpoint = self.checkpoint, None
        return read_checkpoint(self.file) if checkpoint is None else checkpoint


def find_resume_point(folder: Path, say: Callable[[str], None]) -> ResumePoint | None:
    """Where the run with these checkpoints resumes, the same on all ranks; None where nothing was saved yet.

    A damaged checkpoint is left out, with a message. CheckpointError where none is left, or the format is another.
    """
    latest: tuple[Path, dict[str, Any]] | None = None  # on rank 0

    def find() -> tuple[Path, Node] | None:
        nonlocal latest
        latest = latest_checkpoint(folder, say)
        return latest and (latest[0], latest[1]["resume"])

    point = on_first_rank(find)
    return point and ResumePoint(*point, latest and latest[1])


def latest_checkpoint(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in the folder; see `find_resume_point`."""
    files = [file for file in (folder / LAST, folder / PREVIOUS) if file.is_file()]
    for file in files:
        try:
            checkpoint = read_checkpoint(file)
        except DamagedError as error:
            if file == files[-1]:
                raise
            say(str(error))
            continue
        if "resume" not in checkpoint:
            raise CheckpointError(f"{file} has no 'resume' entry: it cannot be resumed. Set resume=false to start a new run.")
        return file, checkpoint
    return None
