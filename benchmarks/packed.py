"""How fast packed shards become training batches, against torchvision's ImageFolder with PIL on the photographs themselves.

usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. All sides draw a random resized crop to 224, in batches of 64, one thread each, in a
process of its own; rounds are interleaved, and what is compared is processor time. torchvision flips and hands over normalised
float, as in its references, imgrec hands over uint8, which the device flips and normalises, as in benchmarks/input.py. Fidelity
is that of the middle 224x224 in evaluation to PIL's picture.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from input import BATCH, PEER, torchvision_side
from PIL import Image
from turns import Lap, Result, machine, processor_seconds, ratio

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, instantiate
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.image_data import ImageData
from imgrec.data.split_folders import find_split_folders
from imgrec.storage.pack import Packing, pack_images

FORMATS = ("keep", "jpeg", "raw")


class Packed(Result):
    """A line of results.json, with what the speed costs."""

    decibel: float  # to PIL's picture
    bytes_per_image: int


def folder_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=imagefolder", f"data.root={root}"])["data"], ImageData)


def packed_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=shards", f"data.root={root}"])["data"], ImageData)


@contextmanager
def imgrec_side(packed: str, images: int) -> Iterator[Lap]:
    torch.set_num_threads(1)
    keep_freed_memory()
    data = packed_data(packed)
    node = compose_config("train", ["augment=basic"])["augment"]
    augment: Augment = instantiate({**node, "crop_scale": [0.08, 1.0], "crop_padding": 0.0})
    split = data.split("train").for_training(augment, 0)
    order = np.random.default_rng(0).permutation(len(split))[:images]

    def lap() -> None:
        for start in range(0, len(order), BATCH):
            _ = split[Request(0, order[start : start + BATCH], BATCH)]

    yield lap


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


def results(root: str, *, size: int = 256, images: int = 512, rounds: int = 5) -> list[Packed]:
    with tempfile.TemporaryDirectory() as scratch:
        for kind in FORMATS:
            packing = Packing(kind, size, 90, 2000)
            workers = len(os.sched_getaffinity(0))
            pack_images(folder_data(root), Path(scratch, kind), packing, num_workers=workers, advance=lambda images: None)
        folders = {f"packed_{kind}": str(Path(scratch, kind)) for kind in FORMATS}
        ways = {name: partial(imgrec_side, packed, images) for name, packed in folders.items()}
        seconds = processor_seconds({PEER: partial(torchvision_side, root, 224, images, 0), **ways}, rounds=rounds)
        train, here = find_split_folders(root).folders["train"], machine()
        rows = []
        for name, packed in folders.items():
            data = packed_data(packed)
            rows.append(
                Packed(
                    name=name,
                    peer=PEER,
                    ratio=ratio(seconds, PEER, name),
                    runs=rounds,
                    machine=here,
                    decibel=round(fidelity(train, data), 1),
                    bytes_per_image=int(data.split("train").content()[:, 0].mean()),
                )
            )
        return rows


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]")
    rows = results(given["root"], **{name: int(value) for name, value in given.items() if name != "root"})
    print(rows[0]["machine"])
    for row in rows:
        print("{name:<18}{ratio:6.2f} times {peer}  {decibel:5.1f} dB  {bytes_per_image:9,} bytes".format_map(row))


if __name__ == "__main__":
    main()
