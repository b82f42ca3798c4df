"""How fast packed shards become training batches, against torchvision's ImageFolder on the photographs themselves and packed forms of others.

usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. All sides draw a random resized crop to 224, in batches of 64, one thread each, and hand over what
they do in benchmarks/input.py. webdataset, litdata and FFCV read the JPEG files of `packed_jpeg`, in their own forms. Fidelity is that of the
middle 224x224 in evaluation to PIL's picture.
"""

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from input import PEER, order_of, torchvision_side, work_of
from peers import BATCH, Work, installed
from photographs import decibel
from PIL import Image
from turns import Result, Side, machine, processor_seconds, ratio

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, instantiate
from imgrec.config.split_folders import find_split_folders
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.image_data import ImageData
from imgrec.data.loader import Loader
from imgrec.storage.pack import Packing, pack_images

FORMATS = ("keep", "jpeg", "raw")
PACKERS = ("webdataset", "litdata", "FFCV")


def folder_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=imagefolder", f"data.root={root}"])["data"], ImageData)


def packed_data(root: str) -> ImageData:
    return build("data", compose_config("train", ["data=shards", f"data.root={root}"])["data"], ImageData)


def imgrec_side(packed: str, images: int, workers: int = 0, *, turns: Iterator[None]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    node = compose_config("train", ["augment=basic"])["augment"]
    augment: Augment = instantiate({**node, "crop_scale": [0.08, 1.0], "crop_padding": 0.0})
    split = packed_data(packed).split("train").for_training(augment, 0)
    order = order_of(len(split), images)
    requests = [Request(0, order[start : start + BATCH], BATCH) for start in range(0, len(order), BATCH)]
    with closing(Loader(split, requests, num_workers=workers)) as loader:
        for _ in turns:
            for _ in loader:
                pass


def fidelity(root: str, packed: ImageData, count: int = 64) -> float:
    """Median dB of the middle 224x224 of images as evaluation sees them, to PIL's: shorter side to 256, then the middle."""
    split = packed.split("train")
    found = []
    for row in range(0, len(split), max(1, len(split) // count)):
        with Image.open(Path(root) / os.fsdecode(split.names[row])) as image:
            scale = 256 / min(image.size)
            small = image.convert("RGB").resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2) for side in small.size)
        ours = split[Request(0, np.array([row]), 1)].images[0].permute(1, 2, 0)
        found.append(decibel(ours, small.crop((left, top, left + 224, top + 224))))
    return round(median(found), 1)


def unpacked(shards: Path, into: Path, images: int) -> Work:
    """The JPEG files in shards of imgrec, for others to pack."""
    for shard in shards.rglob("*.tar"):
        with tarfile.open(shard) as opened:
            opened.extractall(into, filter="data")
    files = sorted(str(file) for file in into.rglob("*.jpg"))
    chosen = [files[k] for k in order_of(len(files), images)]
    return Work(chosen, [0] * len(chosen), 224, 0)


def results(root: str, *, size: int = 256, images: int = 512, rounds: int = 5) -> list[Result]:
    with tempfile.TemporaryDirectory() as scratch:
        folders = {f"packed_{kind}": Path(scratch, kind) for kind in FORMATS}
        for kind, folder in zip(FORMATS, folders.values(), strict=True):
            workers = len(os.sched_getaffinity(0))
            pack_images(
                folder_data(root), folder, Packing(kind, size, 90, 2000), num_workers=workers, advance=lambda images: None
            )
        ours: dict[str, Side] = {name: partial(imgrec_side, str(folder), images) for name, folder in folders.items()}
        others = installed(unpacked(folders["packed_jpeg"], Path(scratch, "files"), images), PACKERS)
        folder_side = partial(torchvision_side, root, work_of(root, 224, images, 0))
        seconds = processor_seconds({PEER: folder_side, **others, **ours}, rounds=rounds)
        for name, spent in seconds.items():
            print(f"{name:<40}{median(spent) / images * 1e6:8.0f} us of the processor's time an image", flush=True)
        both = {
            f"packed_{kind}_two_workers": partial(imgrec_side, str(folders[f"packed_{kind}"]), images, 2)
            for kind in ("jpeg", "raw")
        }
        peer = f"{PEER}, two workers"
        seconds |= processor_seconds(
            {peer: partial(torchvision_side, root, work_of(root, 224, images, 2)), **both}, rounds=rounds
        )
        train, here = find_split_folders(root).folders["train"], machine()
        made = {name: packed_data(str(folder)) for name, folder in folders.items()}
        near = {name: fidelity(train, data) for name, data in made.items()}
        size_of = {name: int(data.split("train").content()[:, 0].mean()) for name, data in made.items()}
        pairs = [
            *((name, PEER) for name in ours),
            *(("packed_jpeg", other) for other in others),
            *((name, peer) for name in both),
        ]
        return [
            Result(
                name=name,
                peer=with_whom.removesuffix(", two workers"),
                ratio=ratio(seconds, with_whom, name),
                runs=rounds,
                machine=here,
                decibel=near[name.removesuffix("_two_workers")],
                bytes_per_image=size_of[name.removesuffix("_two_workers")],
            )
            for name, with_whom in pairs
        ]


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/packed.py root=DIR [size=256] [images=512] [rounds=5]")
    rows = results(given["root"], **{name: int(value) for name, value in given.items() if name != "root"})
    print(rows[0]["machine"])
    for row in rows:
        print("{name:<24}{ratio:6.2f} times {peer}  {decibel:5.1f} dB  {bytes_per_image:9,} bytes".format_map(row))


if __name__ == "__main__":
    main()
