"""How long a folder of a million files takes to open, and what each loader worker needs of memory, against torchvision's ImageFolder.

usage: python benchmarks/million.py [folder=/dev/shm] [files=1000000] [read=100000] [rounds=5]

The files are hard links to 50 photographs of 32x32 in 1,000 class folders, on a tmpfs with as many free inodes; they are removed at
the end. Opening: the splits read and cut, the record of their names, sizes and checksums, the data module; the folder has been
listed once before. Each opening is a process of its own, rounds are interleaved. Memory: what a worker has for itself (Private_Dirty)
more after `read` images than after its first batch.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CLASSES, SOURCES = 1000, 50
WORDS = ["data=imagefolder", "data.image_size=32", "augment=none", "num_workers=2", "batch_size=256"]


def make_folder(root: Path, files: int) -> None:
    import numpy as np
    from PIL import Image

    sources = [root.parent / f"{k}.jpg" for k in range(SOURCES)]
    for k, source in enumerate(sources):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(source)
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for k in range(files // CLASSES):
            os.link(sources[k % SOURCES], folder / f"{folder.name}_{k}.JPEG")


def open_ours(root: str) -> Any:
    from imgrec import config
    from imgrec.data.datamodule import DataModule, build_data
    from imgrec.distributed.world import read_world
    from imgrec.training.data_check import checked_data

    run = config.load("train", [*WORDS, f"data.root={root}"])

    def opening() -> Any:
        data, augment = build_data(run)
        data, _ = checked_data(data, None, print, read_world())
        return DataModule(run, data, augment, devices=1)

    return opening


def open_theirs(root: str) -> Any:
    from torchvision import datasets, transforms

    return lambda: datasets.ImageFolder(root, transforms.ToTensor())


def batches(opened: Any) -> Any:
    from torch.utils.data import DataLoader

    if hasattr(opened, "train_dataloader"):
        return opened.train_dataloader()
    return DataLoader(opened, batch_size=256, shuffle=True, num_workers=2)


def private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def child_pids() -> list[int]:
    return list(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def child(side: str, root: str, read: int) -> None:
    """Prints seconds of the clock, seconds of the processor, MiB per worker (of the largest)."""
    opening = {"imgrec": open_ours, "torchvision": open_theirs}[side](root)
    clock, processor = time.perf_counter(), time.process_time()
    opened = opening()
    print(time.perf_counter() - clock, time.process_time() - processor, end=" ")
    loader, first, seen = batches(opened) if read else [], {}, 0
    for batch in loader:
        seen += len(batch[0])
        first = first or {pid: private_mib(pid) for pid in child_pids()}
        if seen >= read:
            print(max(private_mib(pid) - mib for pid, mib in first.items()), flush=True)
            os._exit(0)  # with its workers
    print(0.0)


def results(*, folder: str = "/dev/shm", files: int = 1_000_000, read: int = 100_000, rounds: int = 5) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=folder, prefix="imgrec-million-") as name:
        root = Path(name) / "images"
        make_folder(root, files)
        environment = {**os.environ, "IMGREC_CACHE": f"{name}/cache", "OMP_NUM_THREADS": "1"}

        def measure(side: str, read: int) -> list[float]:
            command = [sys.executable, __file__, "--child", side, str(root), str(read)]
            said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            return list(map(float, said.split()[-3:]))

        time.sleep(11)  # until the listing of the folders, which were made just now, may be kept
        listed = measure("imgrec", 0)
        print(
            f"listed the first time, and the ends of a sample of the files read: {listed[0]:.1f} s, {listed[1]:.1f} s of the processor"
        )
        runs = {side: [measure(side, 0)] for side in ("imgrec", "torchvision")}
        for _ in range(rounds - 1):
            for side, measured in runs.items():
                measured.append(measure(side, 0))
        memory = {side: measure(side, read)[2] for side in runs}
        shutil.rmtree(root)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    ours, theirs = (([row[0] for row in runs[side]], [row[1] for row in runs[side]]) for side in ("imgrec", "torchvision"))
    return [
        {"name": "million_files_open_s", "peer": "torchvision ImageFolder", "seconds": median(ours[0]), "processor_s": median(ours[1]), "least_s": min(ours[0]),
         "ratio": median(theirs[1]) / median(ours[1]), "runs": ours[0], "machine": machine},
        {"name": "million_files_mib_per_worker", "peer": "torchvision ImageFolder", "mib": memory["imgrec"], "peer_mib": memory["torchvision"],
         "ratio": memory["torchvision"] / max(memory["imgrec"], 0.1), "runs": [memory["imgrec"]], "machine": machine},
    ]  # fmt: skip


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    for row in results(folder=given.pop("folder", "/dev/shm"), **{key: int(value) for key, value in given.items()}):
        print(row)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
