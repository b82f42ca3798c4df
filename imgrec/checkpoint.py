"""The checkpoint format: Lightning's dictionary plus "imgrec", all of it plain data that loads with weights_only=True."""

import os
import pickle
import platform
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from imgrec.config import Node, RunConfig, run_config
from imgrec.errors import CheckpointError, DamagedError
from imgrec.rundir import find
from imgrec.target import ALLOW, in_your_packages

VERSION = 2
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # of the two a run keeps to go on from

# A stored config is code to be called, and somebody else's file may name any: what each node of it may call.
CALLED: dict[str, tuple[str, ...]] = {
    "data": ("imgrec.data.",),
    "model": ("imgrec.models.", "torchvision.models.", "timm.models."),
    "augment": ("imgrec.data.augment.",),
    "optim": ("torch.optim.", "timm.optim."),
    "scheduler": ("imgrec.scheduler.",),
    "loss": ("imgrec.losses.",),
    "trainer": ("imgrec.trainer.",),
    "logger": ("pytorch_lightning.loggers.",),
}


def versions() -> dict[str, str]:
    """Version of each package that decides the numbers of a run."""
    from importlib.metadata import version

    packages = ("imgrec", "torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def card(run: RunConfig, classes: tuple[str, ...], preprocessing: Mapping[str, Any]) -> Node:
    """What a checkpoint says beside the weights, so that nothing after training asks for `model=` or `data=` again."""
    return {
        "version": VERSION,
        "config": run.to_dict(),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "versions": versions(),
    }


class CheckpointIO(TorchCheckpointIO):
    """Writes in a thread, to a temporary name, and renames: training goes on meanwhile, and a kill or a full disk leaves what was there.

    The checkpoint is copied before `save_checkpoint` returns. An error of the thread is raised by the next save, or by `wait`.
    """

    card: Node  # set once the data is read: it holds the class names

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, "imgrec-save")
        self._writing: Future[None] | None = None
        self.seconds = 0.0  # of the processor, that the last write took beside the training

    @rank_zero_only
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.wait()  # no more than one copy in memory
        self._writing = self._thread.submit(self._write, to_cpu({**checkpoint, "imgrec": self.card}), Path(path))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        begun = time.thread_time()
        write(checkpoint, path)
        self.seconds = time.thread_time() - begun

    def wait(self) -> None:
        """Return when all is written; raises CheckpointError if it could not be."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def teardown(self) -> None:
        self.wait()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """A checkpoint file, whole or not at all; the last.ckpt before it becomes previous.ckpt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        unfinished.unlink(missing_ok=True)
        kept = f"{path} of before is whole" if path.exists() else "nothing was there before"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be written: {reason}; {kept}. Make room on that disk and start the same command again."
        ) from error
    if path.name == LAST and path.exists():
        path.replace(path.with_name(PREVIOUS))
    unfinished.replace(path)


def to_cpu(found: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples whose tensors lie in CPU memory of their own."""
    if isinstance(found, Tensor):
        return found.detach().to("cpu", copy=True)
    if isinstance(found, dict):
        return {key: to_cpu(value) for key, value in found.items()}
    if isinstance(found, list):
        return [to_cpu(value) for value in found]
    if isinstance(found, tuple):
        return tuple(to_cpu(value) for value in found)
    return found


def read(path: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """The checked dictionary of a checkpoint: "state_dict", "imgrec" and, for resuming, Lightning's own keys.

    Raises CheckpointError for a file that is truncated, foreign, of another version, or whose config names code that imgrec does not call.
    """
    file = find(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: what comes of it is said below
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as records:  # torch compares no checksum: one flipped bit would pass
                    damaged = records.testzip()
                if damaged is not None:
                    raise zipfile.BadZipFile(f"the checksum of its record {damaged} does not match")
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds pickled objects or is no checkpoint; only plain data is loaded (weights_only=True). Name a checkpoint that imgrec wrote."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        size, reason = file.stat().st_size, (str(error).splitlines() or ["it ends too early"])[0].rstrip(".")
        raise DamagedError(
            f"{file} ({size:,} bytes) is truncated or no checkpoint: {reason}. Name another, such as last.ckpt beside it."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or not isinstance(checkpoint.get("imgrec"), dict):
        raise CheckpointError(
            f"{file} was not written by imgrec: it has no 'imgrec' entry. Weights of torchvision are taken by name: weights=DEFAULT."
        )
    found = checkpoint["imgrec"].get("version")
    if found != VERSION:
        raise CheckpointError(
            f"{file} has checkpoint format {found}; this imgrec reads format {VERSION}. "
            f"Install the imgrec that wrote it: {checkpoint['imgrec'].get('versions', {}).get('imgrec', 'unknown')}."
        )
    for key in ("config", "classes", "preprocessing"):
        if not isinstance(checkpoint["imgrec"].get(key), dict | list):
            raise CheckpointError(f"{file} lacks '{key}' in its 'imgrec' entry. Name a checkpoint that imgrec wrote.")
    _refuse_foreign_code(checkpoint["imgrec"]["config"], file)
    return checkpoint


def _refuse_foreign_code(config: Node, file: Path) -> None:
    for name, node in config.items():
        target = node.get("_target_") if isinstance(node, dict) else None
        if target is None or str(target).startswith(CALLED.get(name, ())) or in_your_packages(str(target)):
            continue
        raise CheckpointError(
            f"{file}: its config would call {target} as its {name}; a stored one may call {' or '.join(f'{home}*' for home in CALLED.get(name, ())) or 'nothing there'}. "
            f"Do not use this file, or if the code is yours: export {ALLOW}={str(target).partition('.')[0]}"
        )


def latest(folder: Path, say: Callable[[str], None]) -> tuple[Path, Node] | None:
    """The newest checkpoint of an unfinished run that is whole, with its "resume" entry; None where nothing was saved yet.

    A damaged one is passed over, with a message, for the one before it. Raises CheckpointError where no other is left, or for another format.
    """
    files = [file for file in (folder / LAST, folder / PREVIOUS) if file.is_file()]
    for file in files:
        try:
            return file, read(file)["resume"]
        except DamagedError as error:
            if file == files[-1]:
                raise
            say(str(error))
        except KeyError as error:
            raise CheckpointError(
                f"{file} was not saved to go on from: it lacks {error}. Start anew with resume=false."
            ) from error
    return None


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read: its config, class names, preprocessing and weights."""

    file: Path
    run: RunConfig
    classes: tuple[str, ...]
    preprocessing: Node
    checkpoint: dict[str, Any]


def load_run(path: str | Path) -> Stored:
    """Read a checkpoint file or run folder; enough to evaluate, predict or export without `model=` or `data=`."""
    file = find(path)
    checkpoint = read(file)
    info = checkpoint["imgrec"]
    try:
        return Stored(file, run_config(info["config"]), tuple(info["classes"]), info["preprocessing"], checkpoint)
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error} in its 'imgrec' entry. Name a checkpoint that imgrec wrote.") from error
