"""How fast packed shards become training batches, against torchvision's ImageFolder with PIL on the photographs themselves.

usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. All sides draw a random resized crop to 224 and a flip, in batches of 64, one thread each,
in a process of its own; rounds are interleaved, and what is compared is processor time. torchvision hands over normalised float, as
in its references, ours uint8, as it goes to the device. Fidelity is that of the middle 224x224 in evaluation to PIL's picture.
"""

import os
import platform
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, instantiate
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.image_data import ImageData
from imgrec.storage.pack import Packing, pack_images

BATCH = 64
FORMATS = ("keep", "jpeg", "raw")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PEER = "torchvision ImageFolder + PIL"


def folder_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=imagefolder", f"data.root={root}"])["data"], ImageData)


def packed_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=shards", f"data.root={root}"])["data"], ImageData)


def imgrec_round(data: ImageData, images: int) -> Callable[[int], None]:
    node = compose_config("train", ["augment=basic"])["augment"]
    augment: Augment = instantiate({**node, "crop_scale": [0.08, 1.0], "crop_padding": 0.0})
    split = data.split("train").for_training(augment, 0)
    keep_freed_memory()

    def measure(epoch: int) -> None:
        order = np.random.default_rng(epoch).permutation(len(split))[:images]
        for start in range(0, len(order), BATCH):
            batch = split[Request(epoch, order[start : start + BATCH], BATCH)]
            augment.batch(batch.images, seed=0, epoch=epoch, indices=batch.indices)

    return measure


def torchvision_round(root: str, images: int) -> Callable[[int], None]:
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    files = torchvision.datasets.ImageFolder(root, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))

    def measure(epoch: int) -> None:
        order = np.random.default_rng(epoch).permutation(len(files))[:images].tolist()
        for start in range(0, len(order), BATCH):
            torch.utils.data.default_collate([files[row] for row in order[start : start + BATCH]])

    return measure


def serve(make: Callable[[], Callable[[int], None]], pipe: Connection) -> None:
    """Measure a round of processor seconds for each epoch that comes through the pipe."""
    torch.set_num_threads(1)
    measure = make()
    while (epoch := pipe.recv()) is not None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        measure(epoch)
        after = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def interleaved(ways: dict[str, Callable[[], Callable[[int], None]]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each round; the first warms the page cache and counts for none."""
    context = get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, way in ways.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(way, theirs)))
        processes[-1].start()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(epoch)
            seconds = pipe.recv()
            if epoch:
                found[name].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return found


def make_imgrec(packed: str | None, root: str, images: int) -> Callable[[int], None]:
    return imgrec_round(folder_data(root) if packed is None else packed_data(packed), images)


def fidelity(root: str, packed: ImageData, count: int = 64) -> float:
    """Median dB of the middle 224x224 of images as evaluation sees them, to PIL's: shorter side to 256, then the middle."""
    split = packed.split("train")
    decibel = []
    for row in range(0, len(split), max(1, len(split) // count)):
        with Image.open(Path(root) / os.fsdecode(split.names[row])) as image:
            scale = 256 / min(image.size)
            small = image.convert("RGB").resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2) for side in small.size)
        theirs = np.asarray(small.crop((left, top, left + 224, top + 224)), dtype=np.float64)
        ours = split[Request(0, np.array([row]), 1)].images[0].permute(1, 2, 0).numpy()
        decibel.append(10 * np.log10(255**2 / max(1e-9, np.square(ours - theirs).mean())))
    return median(decibel)


def results(root: str, *, size: int = 256, images: int = 512, rounds: int = 5) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        workers = len(os.sched_getaffinity(0))
        for kind in FORMATS:
            packing = Packing(kind, size, 90, 2000)
            pack_images(folder_data(root), Path(scratch, kind), packing, num_workers=workers, advance=lambda images: None)
        # torchvision's side reads the files of the training split alone, as does ours.
        train = str(Path(root) / "train") if (Path(root) / "train").is_dir() else root
        folders = {"folder": None} | {kind: str(Path(scratch, kind)) for kind in FORMATS}
        ways = {name: partial(make_imgrec, packed, root, images) for name, packed in folders.items()}
        found = interleaved({PEER: partial(torchvision_round, train, images), **ways}, rounds)
        rows = []
        for name, packed in folders.items():
            data = folder_data(root) if packed is None else packed_data(packed)
            files = data.split("train")
            stored = (
                [files.content()[:, 0]] if packed else [np.array([os.path.getsize(files.path(k)) for k in range(len(files))])]
            )
            rows.append(
                {
                    "name": "jpeg_folder_here" if packed is None else f"packed_{name}",
                    "peer": PEER,
                    "ratio": round(median(theirs / ours for theirs, ours in zip(found[PEER], found[name], strict=True)), 3),
                    "runs": [round(images / seconds, 1) for seconds in found[name]],
                    "machine": f"{processor()}, torch {torch.__version__}, torchvision {torchvision.__version__}",
                    "decibel": round(fidelity(train, data), 1),
                    "bytes_per_image": int(np.concatenate(stored).mean()),
                }
            )
        return rows


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]")
    numbers = {name: int(value) for name, value in given.items() if name != "root"}
    rows = results(given["root"], **numbers)
    print(f"{rows[0]['machine']}; ratio to {PEER}, images per second of processor time (median and rounds)")
    for row in rows:
        rounds = f"{min(row['runs']):.0f} to {max(row['runs']):.0f}"
        print(
            f"{row['name']:<18}ratio {row['ratio']:6.2f}  {median(row['runs']):8.1f} images/s ({rounds})  "
            f"{row['decibel']:5.1f} dB  {row['bytes_per_image']:,} bytes"
        )


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
