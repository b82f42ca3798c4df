"""How long a folder of a million files takes to open, and what each loader worker needs of memory, against torchvision's ImageFolder.

usage: python benchmarks/million.py [folder=/dev/shm] [files=1000000] [read=50000] [rounds=5]

The files are hard links to 50 photographs of 32x32 in 1,000 class folders, on a tmpfs with as many free inodes; they are removed at
the end. Opening: the splits read and cut, the record of their names, sizes and checksums, the data module; the folder has been listed
once before. Memory: what a worker has for itself (Private_Dirty) more after `read` images than after its first batch.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from turns import Result, fork_workers, machine, processor_seconds, ratio

from imgrec import config
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.datamodule import DataModule, build_data
from imgrec.distributed.world import read_world
from imgrec.training.data_check import checked_data

PEER = "torchvision ImageFolder"
CLASSES, SOURCES = 1000, 50
WORDS = ["data=imagefolder", "data.image_size=32", "augment=none", "num_workers=2", "batch_size=256"]


def make_folder(root: Path, files: int) -> None:
    sources = [root.parent / f"{k}.jpg" for k in range(SOURCES)]
    for k, source in enumerate(sources):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(source)
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for k in range(files // CLASSES):
            os.link(sources[k % SOURCES], folder / f"{folder.name}_{k}.JPEG")


def open_imgrec(root: str) -> DataModule:
    keep_freed_memory()  # as a training does before its data is read
    run = config.load("train", [*WORDS, f"data.root={root}"])
    data, augment = build_data(run)
    data, _ = checked_data(data, None, print, read_world())
    return DataModule(run, data, augment, devices=1)


def open_torchvision(root: str) -> datasets.ImageFolder:
    return datasets.ImageFolder(root, transforms.ToTensor())


OPEN = {"imgrec": open_imgrec, PEER: open_torchvision}


def opening(side: str, root: str, *, turns: Iterator[None]) -> None:
    for _ in turns:
        OPEN[side](root)


def private_mib(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def worker_mib(side: str, root: str, read: int) -> float:
    """Of the worker that took most."""
    opened: Any = OPEN[side](root)
    loader = opened.train_dataloader() if side == "imgrec" else DataLoader(opened, batch_size=256, shuffle=True, num_workers=2)
    first: dict[int | None, float] = {}
    seen = 0
    for batch in loader:
        seen += len(batch[0])
        first = first or {child.pid: private_mib(child.pid) for child in active_children()}
        if seen >= read:
            return max(private_mib(pid) - mib for pid, mib in first.items())
    raise ValueError(f"read={read}, but an epoch has {seen} images")


def apart(measure: Callable[..., float], *arguments: object) -> float:
    """What it gives in a process of its own, which forks its workers."""
    with ProcessPoolExecutor(1, get_context("spawn"), fork_workers) as pool:
        return pool.submit(measure, *arguments).result()


def results(*, folder: str = "/dev/shm", files: int = 1_000_000, read: int = 50_000, rounds: int = 5) -> list[Result]:
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="imgrec-million-") as name,
        patch.dict(os.environ, IMGREC_CACHE=f"{name}/cache"),
    ):
        began = time.monotonic()
        root = str(Path(name, "images"))
        make_folder(Path(root), files)
        print(f"{files:,} files made in {time.monotonic() - began:.0f} s", flush=True)
        time.sleep(11)  # until the listing of the folders, which were made just now, may be kept
        times = {"imgrec": rounds, PEER: 1}
        memory = {side: median(apart(worker_mib, side, root, read) for _ in range(times[side])) for side in OPEN}
        seconds = processor_seconds({side: partial(opening, side, root) for side in OPEN}, rounds=rounds)
    for side in OPEN:
        print(f"{side:<40}{median(seconds[side]):8.2f} s of the processor's time to open, {memory[side]:.1f} MiB for each worker")
    here = machine()
    return [
        Result(name="million_files_open_s", peer="none", ratio=median(seconds["imgrec"]), runs=rounds, machine=here),
        Result(name="million_files_open", peer=PEER, ratio=ratio(seconds, PEER, "imgrec"), runs=rounds, machine=here),
        Result(name="million_files_mib_per_worker", peer="none", ratio=memory["imgrec"], runs=rounds, machine=here),
    ]


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    for row in results(folder=given.pop("folder", "/dev/shm"), **{key: int(value) for key, value in given.items()}):
        print(row)


if __name__ == "__main__":
    main()
