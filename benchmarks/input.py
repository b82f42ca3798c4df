"""How fast a folder of photographs becomes training batches, against torchvision's ImageFolder with PIL.

usage: python benchmarks/input.py root=DIR [size=224] [images=512] [rounds=5]

DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg. Both sides read, decode, take a random resized crop, flip, and hand over batches of 64
in random order: torchvision's as normalised float, as in its references, imgrec's as uint8, which the device flips, converts and
normalises; `jpeg_folder_float` has that done here too, as a training on the CPU does it. In one process, and with two workers.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from turns import Lap, Result, machine, processor_seconds, ratio

from imgrec.config.load import load_config
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.datamodule import build_data
from imgrec.data.decode import resize
from imgrec.data.folder import ImageFiles
from imgrec.data.loader import Loader
from imgrec.data.preprocess import Preprocess
from imgrec.data.split_folders import find_split_folders

BATCH = 64
PEER = "torchvision ImageFolder with PIL"


def files_of(root: str, size: int) -> tuple[ImageFiles, Augment, Preprocess]:
    """The files of train, with a random resized crop and flips as torchvision's references have them."""
    crop = ["augment=basic", "augment.crop_padding=0", "augment.crop_scale=[0.08,1]", "augment.flip=0.5"]
    run = load_config("train", ["data=imagefolder", f"data.root={root}", f"data.image_size={size}", "data.val_share=0.01", *crop])
    data, augment = build_data(run)
    preprocess = Preprocess(image_size=size, mean=run.data.mean, std=run.data.std, interpolation=run.data.interpolation)
    train = data.splits.train
    assert isinstance(train, ImageFiles)
    return train.for_training(augment, run.seed), augment, preprocess


@contextmanager
def imgrec_side(root: str, size: int, images: int, workers: int, *, floats: bool) -> Iterator[Lap]:
    torch.set_num_threads(1)
    keep_freed_memory()
    files, augment, preprocess = files_of(root, size)
    order = np.random.default_rng(0).permutation(len(files))[:images]
    requests = [Request(0, order[k : k + BATCH], BATCH) for k in range(0, len(order), BATCH)]

    def lap() -> None:
        for batch in loader:
            if floats:
                moved = augment.batch(preprocess.resize(batch.images), seed=0, epoch=0, indices=batch.indices)
                preprocess.normalize(moved)

    with closing(Loader(files, requests, num_workers=workers)) as loader:
        yield lap


@contextmanager
def torchvision_side(root: str, size: int, images: int, workers: int) -> Iterator[Lap]:
    torch.set_num_threads(1)
    files, _, preprocess = files_of(root, size)
    steps = [
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()),
    ]
    pictures = datasets.ImageFolder(find_split_folders(root).folders["train"], transforms.Compose(steps))
    index = {os.path.realpath(path): k for k, (path, _) in enumerate(pictures.samples)}
    order = np.random.default_rng(0).permutation(len(files))[:images]  # the files that the other side reads
    chosen = Subset(pictures, [index[os.path.realpath(files.path(int(k)))] for k in order])
    loader = DataLoader(chosen, BATCH, num_workers=workers, persistent_workers=workers > 0)

    def lap() -> None:
        for _ in loader:
            pass

    yield lap


def fidelity(root: str, size: int, images: int) -> float:
    """dB between a crop as imgrec resizes it and PIL's of the same box; the median over images."""
    files, augment, _ = files_of(root, size)
    found = []
    for index in range(min(images, len(files))):
        with Image.open(files.path(index)) as opened:
            picture = opened.convert("RGB")
        top, left, height, width = augment.crop_box(picture.height, picture.width, seed=0, epoch=0, index=index) or (0, 0, 1, 1)
        box = (left, top, left + width, top + height)
        theirs = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.float64)
        crop = torch.from_numpy(np.asarray(picture.crop(box)).copy()).permute(2, 0, 1)
        ours = resize(crop, size, size, "bilinear").permute(1, 2, 0).numpy()
        found.append(10 * np.log10(255**2 / max(np.mean((ours - theirs) ** 2), 1e-10)))
    return float(median(found))


def results(root: str, *, size: int = 224, images: int = 512, rounds: int = 5) -> list[Result]:
    """jpeg_folder and jpeg_folder_float in one process, and with two workers."""
    found, here = [], machine()
    for workers, suffix in ((0, ""), (2, "_two_workers")):
        sides = {
            "peer": partial(torchvision_side, root, size, images, workers),
            "jpeg_folder": partial(imgrec_side, root, size, images, workers, floats=False),
            "jpeg_folder_float": partial(imgrec_side, root, size, images, workers, floats=True),
        }
        seconds = processor_seconds(sides, rounds=rounds)
        for name, spent in seconds.items():
            print(f"{name + suffix:32}{median(spent) / images * 1e6:8.0f} us of the processor's time an image")
        found += [
            Result(name=name + suffix, peer=PEER, ratio=ratio(seconds, "peer", name), runs=rounds, machine=here)
            for name in sides
            if name != "peer"
        ]
    return found


def main() -> None:
    given = {"size": "224", "images": "512", "rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    if "root" not in given:
        raise SystemExit("usage: python benchmarks/input.py root=DIR [size=224] [images=512] [rounds=5]")
    size, images, rounds = (int(given[key]) for key in ("size", "images", "rounds"))
    print(f"{machine()}\n{images} images to {size}x{size}, {fidelity(given['root'], size, 64):.1f} dB from PIL's (median of 64)")
    for result in results(given["root"], size=size, images=images, rounds=rounds):
        print("{name:32}{ratio:6.2f} times {peer}, median of {runs} rounds".format_map(result))


if __name__ == "__main__":
    main()
