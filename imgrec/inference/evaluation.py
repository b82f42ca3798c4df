"""The labelled images that a checkpoint is measured on: a split of its data set, or a folder."""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from imgrec.config.annotations import check_type, format_value, read_pattern
from imgrec.config.instantiate import locate, parameter_types
from imgrec.config.named_values import BadImage
from imgrec.config.options import shipped_targets
from imgrec.config.schema import Node, Split
from imgrec.config.start_checks import check_beside_folder
from imgrec.data.datasets import ImageFolder
from imgrec.data.file_splits import folder_split, named_split
from imgrec.data.folder import Reading
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.data.split_record import Changes, composed_names, find_changes, other_classes
from imgrec.errors import ConfigError, DataError
from imgrec.image_folders import find_images
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.stored_code import build_stored


class EvaluationImages(NamedTuple):
    """The images to measure on; the training counts per class (int64 [K]), which class weights follow, and how the data
    differs from what the run was trained on; the data set that has them: all None for a folder.
    """

    images: ImageSet
    counts: Tensor | None
    changes: Changes | None
    data: ImageData | None

    def changes_note(self) -> str:
        """A sentence for the terminal, or nothing."""
        if self.changes is None or not self.changes.counts:
            return ""
        left_out = "; new ones are left out" if self.changes.counts["new"] else ""
        return f"the images have changed since the training: {self.changes}{left_out}"


def at_image_size(checkpoint: Checkpoint, image_size: int | None) -> Checkpoint:
    """The checkpoint for images of another side (Touvron 2019, arXiv 1906.06423); ConfigError for a network of one size."""
    if image_size is None:
        return checkpoint
    if "image_size" in checkpoint.run.model:
        raise ConfigError(
            f"data.image_size={image_size}: the network {checkpoint.run.model['_target_']} is built for images of "
            f"{checkpoint.preprocessing['image_size']} pixels. Leave it out."
        )
    preprocessing = checkpoint.preprocessing.copy()
    preprocessing["image_size"] = image_size
    return replace(checkpoint, preprocessing=preprocessing)


def evaluation_images(checkpoint: Checkpoint, *, split: Split, folder: str | None, changes: Node) -> EvaluationImages:
    """The images to measure on: those that the run had in this split, as far as they are there, and no others.

    `changes` replace keys of the stored data config; those that are None do not. ConfigError for a key that the set does not
    have, DataError for classes that are not the checkpoint's, or none of the split's images.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    node = checkpoint.run.data.to_node()
    if folder is not None:
        _check_changes(changes, node, folder)
        bad = cast(BadImage, ({"on_bad_image_eval": "refuse"} | node | changes)["on_bad_image_eval"])
        reading = Reading(on_bad_image=bad, on_bad_image_eval=bad, decoder="auto")
        if node["_target_"] in shipped_targets("data") and (label_from := node.get("label_from")) is not None:
            pattern = read_pattern("data.label_from", label_from)
            files = find_images(folder)
            images = named_split(folder, files, checkpoint.classes, checkpoint.preprocessing, label_from=pattern, **reading)
        else:
            images = folder_split(folder, checkpoint.classes, checkpoint.preprocessing, **reading)
        return EvaluationImages(images, None, None, None)
    data, then = stored_data(checkpoint, changes), checkpoint.record()
    found = data.split(split)
    if then is None or split not in then.splits:  # which has been added since then
        return EvaluationImages(found, torch.from_numpy(data.counts("train")), None, data)
    recorded, names = then.splits[split].names, composed_names(found.names)
    if recorded is not None and names is not None:
        found = found.take(np.flatnonzero(np.isin(names, recorded)))
    if not len(found):
        raise DataError(
            f"{_where(node | changes)} has none of the images that the run had in {split}. "
            "Set data.root=FOLDER as it was, or folder=DIR to measure on DIR/CLASS/*."
        )
    counts = torch.from_numpy(np.bincount(then.splits["train"].labels, minlength=len(data.classes)))
    return EvaluationImages(found, counts, find_changes(then, data.record(content=(split,))), data)


def stored_data(checkpoint: Checkpoint, changes: Node) -> ImageData:
    """The data of a run, its images in the splits that they had in the training, with `changes` to keys of the stored config.

    ConfigError for a key that the set does not have, DataError for classes that are not the checkpoint's.
    """
    data, then = _build_data(checkpoint, changes), checkpoint.record()
    return _checked(checkpoint, data if then is None else data.following(then), changes)


def whole_data(checkpoint: Checkpoint, changes: Node) -> ImageData:
    """`stored_data` of the run of a fold without its folds: its pool is that of all of them."""
    return _checked(checkpoint, _build_data(checkpoint, changes, fold=None), changes)


def _build_data(checkpoint: Checkpoint, changes: Node, **keys: None) -> ImageData:
    node = checkpoint.run.data.to_node()
    _check_changes(changes, node, None)
    # The root comes from the file: nothing is written there unless the user says so.
    node = {key: _without_download(value) for key, value in _without_download(node).items()}
    data: ImageData = build_stored("data", node | changes | keys)
    return data


def _checked(checkpoint: Checkpoint, data: ImageData, changes: Node) -> ImageData:
    if other := other_classes(checkpoint.classes, data.classes):
        where = _where(checkpoint.run.data.to_node() | changes)
        raise DataError(f"{where} has {other}. Set data.root=FOLDER as it was, or folder=DIR to measure on DIR/CLASS/*.")
    return data


def _where(node: Node) -> str:
    return str(next(filter(None, map(node.get, ("root", "file"))), _set_name(node)))


def _without_download(value: Any) -> Any:
    return value | {"download": False} if isinstance(value, dict) and "download" in value else value


def _check_changes(changes: Node, node: Node, folder: str | None) -> None:
    if folder is not None:
        check_beside_folder(changes, folder)
    types = parameter_types(ImageFolder if folder is not None else locate(node["_target_"]))
    for key, value in changes.items():
        if key not in types:
            override = f"data.{key}={format_value(value)}"
            raise ConfigError(f"{override} has no effect: the run's data, {_set_name(node)}, has no such key. Leave it out.")
        check_type(f"data.{key}", value, types[key])


def _set_name(node: Node) -> str:
    return str(node["_target_"]).rpartition(".")[2]
