"""How fast a folder of photographs becomes training batches, against torchvision's ImageFolder; one core, interleaved.

usage: python benchmarks/input.py root=DIR [size=224] [images=256] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. Both sides read, decode, resize to a square (to the same pixels within two grey levels)
and hand over batches of 64: torchvision's as normalised float, as in its references, ours as uint8, which the device converts and
normalises. The third line has ours converted and normalised here too, once per batch.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torchvision
from PIL import __version__ as pillow
from torchvision import transforms

from imgrec.data.batch import Request
from imgrec.data.decode import Preprocessing
from imgrec.data.folder import folder_split
from imgrec.data.split_folders import class_folders, find_split_folders

BATCH = 64
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    given = {"size": "224", "images": "256", "rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/input.py root=DIR [size=224] [images=256] [rounds=5]")
    root, size, images, rounds = (
        find_split_folders(given["root"]).folders["train"],
        int(given["size"]),
        int(given["images"]),
        int(given["rounds"]),
    )
    torch.set_num_threads(1)
    prep = Preprocessing(
        image_size=size,
        channels=3,
        mean=MEAN,
        std=STD,
        resize="squash",
        crop_share=1.0,
        interpolation="bilinear",
        max_pixels=10**8,
        scale=None,
    )
    files = folder_split(root, class_folders(root), prep, on_bad_image="refuse", on_bad_image_eval="refuse", decoder="auto")
    chosen = np.random.default_rng(0).permutation(len(files))[:images]
    cuts = [chosen[k : k + BATCH] for k in range(0, len(chosen), BATCH)]

    to_float = transforms.Compose([transforms.Resize([size, size]), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    theirs = torchvision.datasets.ImageFolder(root, to_float)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def imgrec() -> None:
        for cut in cuts:
            files[Request(0, cut, len(cut))]

    def imgrec_float() -> None:
        for cut in cuts:
            files[Request(0, cut, len(cut))].images.float().div_(255).sub_(mean).div_(std)

    def imagefolder() -> None:
        for cut in cuts:
            torch.utils.data.default_collate([theirs[i] for i in cut])

    ways: dict[str, Callable[[], None]] = {
        "torchvision ImageFolder + PIL": imagefolder,
        "imgrec, uint8": imgrec,
        "imgrec, float on the CPU": imgrec_float,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(rounds + 1):  # the first warms the page cache and counts for none
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if lap:
                found[name].append(len(chosen) / (time.perf_counter() - start))

    print(
        f"{processor()}, {os.cpu_count()} CPUs, 1 used; Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Pillow {pillow}"
    )
    kilobytes = sum(os.path.getsize(files.path(int(i))) for i in chosen) / len(chosen) / 1e3
    print(f"{len(chosen)} images of {kilobytes:.0f} KB on average to {size}x{size}, median of {rounds} interleaved rounds")
    base = median(found["torchvision ImageFolder + PIL"])
    for name, rates in found.items():
        ratio = median(rates) / base
        print(f"{name:<31}{median(rates):8.1f} images/s ({min(rates):.1f} to {max(rates):.1f})  ratio {ratio:.2f}")


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
