"""The labelled images that a checkpoint is measured on: a split of its data set, or a folder."""

from typing import cast

import torch
from torch import Tensor

from imgrec.config.annotations import check_type, format_value
from imgrec.config.instantiate import instantiate, locate, parameter_types
from imgrec.config.schema import Node, Split
from imgrec.data.datasets import ImageFolder
from imgrec.data.folder import BadImage, folder_split
from imgrec.data.image_data import ImageData
from imgrec.data.image_set import ImageSet
from imgrec.errors import ConfigError, DataError
from imgrec.inference.checkpoint import Checkpoint


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
