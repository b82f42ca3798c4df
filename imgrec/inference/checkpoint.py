"""Reading a checkpoint: plain data with a format version, checked before it is used."""

import functools
import hashlib
import pickle
import platform
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgrec.config.schema import Node, RunConfig
from imgrec.data.decode import Preprocessing
from imgrec.data.split_record import DataRecord
from imgrec.errors import CheckpointError, ConfigError, DamagedError, first_line
from imgrec.inference.calibration import CALIBRATION, Calibration
from imgrec.inference.metadata import check_content, check_metadata
from imgrec.inference.stored_code import build_stored, check_targets
from imgrec.models.catalog import weightless
from imgrec.models.losses import Loss
from imgrec.models.split_head import split_heads
from imgrec.paths import find_checkpoint, name_another

FORMAT_VERSION = 6


@functools.cache
def package_versions() -> dict[str, str]:
    """Version of each package that decides the numbers of a run (2 ms to find)."""
    from importlib.metadata import version

    packages = ("imgrec", "torch", "torchvision", "pytorch-lightning", "hydra-core")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def read_checkpoint(path: str | Path, *, fix: str | None = None) -> dict[str, Any]:
    """The checked dictionary of a checkpoint: "state_dict", "imgrec" and, for resuming, Lightning's own keys.

    fix: what to do where it is damaged; None: to name another. Raises CheckpointError for a file that is truncated, foreign,
    of another version, or whose config names code that imgrec does not call.
    """
    file = find_checkpoint(path, fix=fix)
    fix = name_another(file) if fix is None else fix
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the error below says more
            _check_records(file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: it holds pickled objects or is no checkpoint; only plain data is loaded (weights_only=True). Name a checkpoint that imgrec wrote."
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. {fix}".rstrip()) from error
    except Exception as error:  # of a foreign file torch's unpickler raises IndexError, KeyError, RuntimeError and more
        size, reason = file.stat().st_size, first_line(error) if str(error) else "it ends too early"
        raise DamagedError(f"{file} ({size:,} bytes) is truncated or no checkpoint: {reason}. {fix}".rstrip()) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or not isinstance(checkpoint.get("imgrec"), dict):
        raise CheckpointError(
            f"{file}: it was not written by imgrec, as it has no 'imgrec' entry. Weights of torchvision are taken by name: weights=DEFAULT."
        )
    version = checkpoint["imgrec"].get("version")
    if not isinstance(version, int) or version != FORMAT_VERSION:  # a tensor is no bool
        raise CheckpointError(
            f"{file}: it has checkpoint format {version if isinstance(version, int) else type(version).__name__}; this imgrec reads format {FORMAT_VERSION}. "
            "Train again with this version, or use the imgrec that wrote it."
        )
    try:
        check_content(checkpoint, file.stat().st_size)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error} Name a checkpoint that imgrec wrote.") from error
    try:
        check_targets(checkpoint["imgrec"]["config"])
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return checkpoint


def _check_records(file: Path) -> None:
    """BadZipFile where the checksum of a record is wrong, or the records are larger than the file, which would fill the memory."""
    if not zipfile.is_zipfile(file):
        raise zipfile.BadZipFile("it ends too early")
    with zipfile.ZipFile(file) as records:
        if sum(record.file_size for record in records.infolist()) > file.stat().st_size:
            raise zipfile.BadZipFile("its records are compressed, or are the same bytes several times")
        damaged = records.testzip()  # torch compares no checksum: one flipped bit would pass
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of its record {damaged} does not match")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: its config, class names, preprocessing and weights."""

    file: Path
    run: RunConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    content: dict[str, Any]  # all of the file: "state_dict", "imgrec" and Lightning's own keys

    def record(self) -> DataRecord | None:
        """What the run's splits held; None where it was saved without a training."""
        return read_record(self.content["imgrec"], self.file)

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """The temperature that was fitted after the training; None where none was. CheckpointError where other weights had it."""
        if (stored := self.content["imgrec"].get(CALIBRATION)) is None:
            return None
        found = Calibration.unpack(stored, classes=len(self.classes))
        if found.weights not in (None, weights_hash(self.content)):
            raise CheckpointError(
                f"{self.file}: its weights are not those that its temperature and its validation images belong to. "
                "Put the file back; evaluate, explain, export, predict and serve use neither with calibrated=false."
            )
        return found

    def network(self) -> nn.Module:
        """The network with its weights, on the CPU; CheckpointError where they do not fit its config."""
        state = network_state(self.content)
        # Without memory first: the config may ask for any size, the weights are no larger than the file.
        try:
            with torch.device("meta"):
                net = self._build("model", self.run.model, num_classes=len(self.classes))
        except CheckpointError:  # RegNet computes with tensors while it is built
            with weightless():
                net = self._build("model", self.run.model, num_classes=len(self.classes))
        self._split(net)
        self._load(net.to("meta"), {key: tensor.to("meta") for key, tensor in state.items()})
        whole: nn.Module = self._build("model", self.run.model, num_classes=len(self.classes))
        self._split(whole)
        self._load(whole, state)
        return whole

    def _split(self, net: nn.Module) -> None:
        try:
            if (parent := self.run.extended()) is not None and parent.frozen:
                split_heads(net, parent.parts(len(self.classes)))
        except ConfigError as error:
            raise CheckpointError(f"{self.file}: {error}") from error

    def _build(self, group: str, node: Node, **extra: Any) -> Any:
        try:
            return build_stored(group, node, **extra)
        except ConfigError as error:
            raise CheckpointError(f"{self.file}, written by imgrec {self._written_by()}: {error}") from error

    def _load(self, net: nn.Module, state: dict[str, Tensor]) -> None:
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n")[1:2]).strip().rstrip(".") or str(error)
            raise CheckpointError(
                f"{self.file}: its weights do not fit the network of its config ({reason}). "
                f"Train again, or install the imgrec that wrote it: {self._written_by()}."
            ) from error

    def _written_by(self) -> str:
        return str(self.content["imgrec"]["versions"].get("imgrec", "unknown"))

    def loss(self, counts: Tensor | None) -> Loss:
        """The run's loss, with its class weights where the training counts (int64 [K]) are known."""
        loss: Loss = self._build("loss", self.run.loss, **({} if counts is not None else {"class_weights": "none"}))
        if counts is not None:
            loss.set_class_counts(counts)
        return loss


def read_record(metadata: Node, file: Path) -> DataRecord | None:
    """What the splits of a run held, from the metadata of its checkpoint."""
    if metadata["data"] is None:
        return None
    try:
        return DataRecord.unpack(metadata["classes"], metadata["data"])
    except ValueError as error:
        raise CheckpointError(
            f"{file}: its record of the images cannot be read: {first_line(error)}. Name a checkpoint that imgrec wrote."
        ) from error


def network_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """The network's tensors of a checkpoint's content, by their names in the network. With EMA they are the averaged weights."""
    return {key.removeprefix("net."): value for key, value in content["state_dict"].items() if key.startswith("net.")}


def weights_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of the network's tensors and their names, types and shapes: equal for all files that hold the same weights."""
    return state_hash(network_state(content))


def state_hash(state: Mapping[str, Any]) -> str:
    """`weights_hash` of the network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file or run directory; enough to evaluate, predict or export without `model=` or `data=`."""
    file = find_checkpoint(path)
    return parse_checkpoint(file, read_checkpoint(file))


def parse_checkpoint(file: Path, content: dict[str, Any]) -> Checkpoint:
    """`load_checkpoint` of what was read already."""
    try:
        run, preprocessing = check_metadata(content)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error} Name a checkpoint that imgrec wrote.") from error
    return Checkpoint(file, run, tuple(content["imgrec"]["classes"]), preprocessing, content)
