"""How fast a folder of photographs becomes training batches, against torchvision's ImageFolder with PIL and other loaders.

usage: python benchmarks/input.py root=DIR [size=224] [images=512] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. All sides read the same files in the same random order, decode, take a random resized crop, flip,
and hand over batches of 64: ImageFolder's as normalised float, as in torchvision's references, those of imgrec and of the peers of
peers.py as uint8; `jpeg_folder_float` converts and normalises here too, as a training on the CPU does it. imgrec's uint8 images are flipped
on the device. `cached_folder`: with data.cache=ram, from the second epoch on. In one process, and with two workers.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from statistics import median

import numpy as np
import torch
from peers import BATCH, Work, installed
from photographs import decibel
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from turns import Result, Side, machine, processor_seconds, ratio

from imgrec.config.load import load_config
from imgrec.config.split_folders import find_split_folders
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Indices, Request
from imgrec.data.datamodule import build_data
from imgrec.data.decode import resize
from imgrec.data.folder import ImageFiles
from imgrec.data.loader import Loader
from imgrec.data.preprocess import Preprocess

PEER = "torchvision ImageFolder with PIL"


def files_of(root: str, size: int) -> tuple[ImageFiles, Augment, Preprocess]:
    """The files of train, with a random resized crop and flips as torchvision's references have them."""
    crop = ["augment=basic", "augment.crop_padding=0", "augment.crop_scale=[0.08,1]", "augment.flip=0.5"]
    folder = ["data=imagefolder", f"data.root={root}", f"data.image_size={size}", "data.val_share=0.01"]
    run = load_config("train", [*folder, *crop])
    data, augment = build_data(run)
    preprocess = Preprocess(image_size=size, mean=run.data.mean, std=run.data.std, interpolation=run.data.interpolation)
    train = data.splits.train
    assert isinstance(train, ImageFiles)
    return train.for_training(augment, run.seed), augment, preprocess


def order_of(count: int, images: int) -> Indices:
    return np.random.default_rng(0).permutation(count)[:images]


def imgrec_side(root: str, work: Work, *, floats: bool = False, cached: bool = False, turns: Iterator[None]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    files, augment, preprocess = files_of(root, work.size)
    files = files.decoded_once() if cached else files
    order = order_of(len(files), len(work.files))
    requests = [Request(0, order[k : k + BATCH], BATCH) for k in range(0, len(order), BATCH)]
    with closing(Loader(files, requests, num_workers=work.workers)) as loader:
        for _ in turns:
            for batch in loader:
                if floats:
                    moved = augment.batch(preprocess.resize(batch.images), seed=0, epoch=0, indices=batch.indices)
                    preprocess.normalize(moved)


def torchvision_side(root: str, work: Work, *, turns: Iterator[None]) -> None:
    torch.set_num_threads(1)
    steps = [
        transforms.RandomResizedCrop(work.size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    pictures = datasets.ImageFolder(find_split_folders(root).folders["train"], transforms.Compose(steps))
    index = {os.path.realpath(path): k for k, (path, _) in enumerate(pictures.samples)}
    chosen = Subset(pictures, [index[os.path.realpath(path)] for path in work.files])
    loader = DataLoader(chosen, BATCH, num_workers=work.workers, persistent_workers=work.workers > 0)
    for _ in turns:
        for _ in loader:
            pass


def fidelity(root: str, size: int, images: int) -> float:
    """dB between a crop as imgrec resizes it and PIL's of the same box; the median over images."""
    files, augment, _ = files_of(root, size)
    found = []
    for index in range(min(images, len(files))):
        with Image.open(files.path(index)) as opened:
            picture = opened.convert("RGB")
        top, left, height, width = augment.crop_box(picture.height, picture.width, seed=0, epoch=0, index=index) or (0, 0, 1, 1)
        box = (left, top, left + width, top + height)
        crop = torch.from_numpy(np.asarray(picture.crop(box)).copy()).permute(2, 0, 1)
        ours = resize(crop, size, size, "bilinear").permute(1, 2, 0)
        found.append(decibel(ours, picture.resize((size, size), Image.Resampling.BILINEAR, box=box)))
    return round(median(found), 1)


def work_of(root: str, size: int, images: int, workers: int) -> Work:
    files, _, _ = files_of(root, size)
    order = order_of(len(files), images)
    return Work([files.path(int(k)) for k in order], files.labels[order].tolist(), size, workers)


def results(root: str, *, size: int = 224, images: int = 512, rounds: int = 5) -> list[Result]:
    found, here = [], machine()
    near = fidelity(root, size, 64)
    for workers, suffix in ((0, ""), (2, "_two_workers")):
        work = work_of(root, size, images, workers)
        ours: dict[str, Side] = {
            "jpeg_folder": partial(imgrec_side, root, work),
            "jpeg_folder_float": partial(imgrec_side, root, work, floats=True),
            "cached_folder": partial(imgrec_side, root, work, cached=True),
        }
        others = installed(work)
        seconds = processor_seconds({PEER: partial(torchvision_side, root, work), **others, **ours}, rounds=rounds)
        for name, spent in seconds.items():
            print(
                f"{name + suffix:<40}{median(spent) / len(work.files) * 1e6:8.0f} us of the processor's time an image", flush=True
            )
        found += [
            Result(name=name + suffix, peer=peer, ratio=ratio(seconds, peer, name), runs=rounds, machine=here, decibel=near)
            for name, peer in [*((name, PEER) for name in ours), *(("jpeg_folder", peer) for peer in others)]
        ]
    return found


def main() -> None:
    given = {"size": "224", "images": "512", "rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/input.py root=DIR [size=224] [images=512] [rounds=5]")
    size, images, rounds = (int(given[key]) for key in ("size", "images", "rounds"))
    for result in results(given["root"], size=size, images=images, rounds=rounds):
        print("{name:32}{ratio:6.2f} times {peer}, median of {runs} rounds, {decibel} dB from PIL's".format_map(result))


if __name__ == "__main__":
    main()
