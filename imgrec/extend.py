"""Add classes to a trained network: python -m imgrec.extend runs/NAME/ID data.root=FOLDER

A training like any other (imgrec.train), of the run's network with more rows in its head, on the run's images and those
of the folder. Its result says what became of the old answers.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from imgrec.config.annotations import read_pattern
from imgrec.config.compose import check_names, compose_config, read_overrides
from imgrec.config.load import compose_run
from imgrec.config.overrides import Override
from imgrec.config.schema import DataConfig, Node, Parent, RunConfig, run_config
from imgrec.config.start_checks import check_data
from imgrec.config.stored_classes import stored_classes
from imgrec.data.folder_classes import find_classes, new_classes
from imgrec.distributed import signals
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, ExitCode
from imgrec.paths import find_checkpoint
from imgrec.train import fit

# Keys of `data` that the old network was trained with.
PREPARED = ("image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "scale")
OF_FOLDER = "imgrec.data.datasets.ImageFolder", "imgrec.data.extended.ExtendedFolder"
# Keys with which it would not be an extension of that run.
OF_THE_RUN = {
    "weights": "the network begins as that of ckpt",
    "parent": "ckpt says it",
    "continue_from": "ckpt says it",
    "experiment": "the network, its images and their augmentation are those of ckpt",
    "data.old": "ckpt says it, or old_images=false",
    "data.old_classes": "ckpt says it",
}


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Train the extended network; the same command resumes it."""
    signals.install_handlers()  # before the seconds that importing torch takes
    fit(extended_run(argv, config_dir))
    return ExitCode.OK


def extended_run(argv: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """The training that the words of `imgrec extend` mean. ConfigError for a key that the run decides."""
    typed = {override.key: override for override in read_overrides("extend", argv, config_dir)}
    _check_keys(typed)
    check_names("extend", typed.values(), typed.values(), config_dir)
    ckpt = typed["ckpt"].value if "ckpt" in typed else None
    if ckpt in (None, "null"):
        raise ConfigError("ckpt=null: extend needs a trained network. Type imgrec extend runs/NAME/ID data.root=FOLDER.")
    if "data.root" not in typed or typed["data.root"].value == "null":
        raise ConfigError(
            f"data.root is missing: a folder with a folder for each new class. Type imgrec extend {ckpt} data.root=FOLDER."
        )
    file = find_checkpoint(str(ckpt))
    words: list[str | Override] = [*argv, Override(f"weights={ckpt}", "", "weights", str(ckpt))]
    tree = compose_config("extend", words, config_dir)
    root, found = tree["data"]["root"], _find_classes(tree["data"])
    if (known := stored_classes(file)) is not None:
        new_classes(root, known, found, old_images=tree["old_images"])
    from imgrec.inference.checkpoint import load_checkpoint, weights_hash

    old = load_checkpoint(str(ckpt))
    new_classes(root, old.classes, found, old_images=tree["old_images"])
    tree = compose_run("extend", words, config_dir)
    parent = old.run.extended()
    counts = [] if parent is None or not parent.frozen else parent.classes
    tree["parent"] = asdict(Parent(weights_hash(old.content), [*counts, len(old.classes) - sum(counts)], frozen=tree["frozen"]))
    tree["model"] = old.run.model | {"num_classes": None}
    tree["data"] = _data(tree, old.run.data, list(old.classes))
    if "name" not in typed or typed["name"].value == "null":
        tree["name"] = f"{old.run.name}_extended"
    tree["augment"] = _of_run("augment", old.run.augment, tree, typed)
    unweighted = {"class_weights": "none"} if "class_weights" in old.run.loss else {}
    tree["loss"] = _of_run("loss", old.run.loss | unweighted, tree, typed)
    return run_config(tree)


def _of_run(group: str, old: Node, tree: Node, typed: Collection[str]) -> Node:
    """The node of the run with the keys that are typed, or the option that is typed."""
    keys = [key.partition(".")[2] for key in typed if key.startswith(f"{group}.")]
    node: Node = tree[group]
    return node if group in typed else old | {key: node[key] for key in keys}


def _check_keys(typed: dict[str, Override]) -> None:
    for key, override in typed.items():
        group, _, inner = key.partition(".")
        if key in OF_THE_RUN:
            raise ConfigError(f"{override.text!r}: {OF_THE_RUN[key]}. Remove it.")
        if group == "model":
            raise ConfigError(
                f"{override.text!r}: the network is that of the run. Remove it, or type imgrec train {override.text} weights=RUN."
            )
        if group == "data" and inner in PREPARED:
            raise ConfigError(f"{override.text!r}: images are prepared as the run's network was trained. Remove it.")


def _find_classes(data: Node) -> tuple[str, ...]:
    """The classes of the folder; an ImgrecError where it cannot be read, before torch is imported."""
    if data["_target_"] not in OF_FOLDER:
        raise ConfigError(f"data: extend reads a folder, and this is {data['_target_']}. Type data.root=FOLDER.")
    check_data(DataConfig.from_node(data | {"_target_": OF_FOLDER[1], "old_classes": None}))
    pattern = data["label_from"]
    return find_classes(data["root"], None if pattern is None else read_pattern("data.label_from", pattern), least=1)


def _data(tree: Node, old: DataConfig, classes: list[str]) -> Node:
    """The node of the joined data. DataError where the run's data is not where it was."""
    data: Node = tree["data"]
    if tree["old_images"]:
        try:
            check_data(old)
        except DataError as error:
            raise DataError(
                f"the images of the run: {error} Or set old_images=false, with some images of each old class in data.root."
            ) from error
    prepared: dict[str, Any] = {key: getattr(old, key) for key in PREPARED}
    joined = {"_target_": OF_FOLDER[1], "old_classes": classes, "old": old.to_node() if tree["old_images"] else None}
    return data | prepared | joined


if __name__ == "__main__":
    sys.exit(run_command("extend", main, sys.argv[1:]))
