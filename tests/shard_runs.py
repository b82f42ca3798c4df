"""Runs on packed shards, and which samples they train on: what test_shard_runs.py and prove_remote.py share."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from resumed_runs import EVERYTHING
from test_data_folder import folder, make
from test_pack import pack

from imgrec import config
from imgrec.config.schema import RunConfig
from imgrec.storage.index import ShardIndex
from imgrec.storage.pack import Packing
from imgrec.training.module import Classifier

WORDS = (
    *(word for word in EVERYTHING if not word.startswith("data")),
    "data=shards",
    "data.image_size=16",
    "callbacks.pictures=null",
)


def packed_photos(place: Path) -> Path:
    """Images of three classes, for training in four shards, and some for validation and test."""
    data = folder(make(place / "photos", {"cat": 12, "dog": 14, "eel": 10}))
    return pack(data, place / "packed", Packing("keep", size=32, quality=90, shard_images=5))


def train_images(packed: Path) -> int:
    return len(ShardIndex.read(packed).splits["train"].labels)


def shards_run(folder: Path, root: Path | str, *words: str) -> RunConfig:
    return config.load("train", [*WORDS, f"data.root={root}", f"runs_dir={folder}", "name=r", "id=a", *words])


@contextmanager
def logging(file: Path) -> Iterator[None]:
    """The processes that are forked in the block write down the samples of each micro-batch before they train on it."""
    step = Classifier.training_step

    def logged(self: Classifier, batch: Any, *args: Any) -> Any:
        with file.open("a") as log:
            log.write(json.dumps([os.getpid(), batch.epoch, self.trainer.global_step, batch.indices.tolist()]) + "\n")
        return step(self, batch, *args)

    Classifier.training_step = logged
    try:
        yield
    finally:
        Classifier.training_step = step


def logged_samples(file: Path, *, ranks: int = 1) -> dict[int, dict[int, list[int]]]:
    """The samples of each step of each epoch, ascending; of a step that was trained again, those of the last processes that did."""
    by_process: dict[tuple[int, int], dict[int, list[int]]] = {}
    for line in file.read_text().splitlines():
        process, epoch, step, indices = json.loads(line)
        by_process.setdefault((epoch, step), {}).setdefault(process, []).extend(indices)
    found: dict[int, dict[int, list[int]]] = {}
    for (epoch, step), processes in sorted(by_process.items()):
        last = list(processes.values())[-ranks:]
        found.setdefault(epoch, {})[step] = sorted(chain.from_iterable(last))
    return found
