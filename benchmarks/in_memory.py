"""How fast a set in memory becomes augmented training batches, against torchvision's v2 transforms: images of CIFAR's size on one core.

usage: python benchmarks/in_memory.py [images=16384] [rounds=5]

torchvision: a DataLoader in this process, and of each image ToImage, RandomCrop(32, padding=4), RandomHorizontalFlip, ToDtype and Normalize.
imgrec: augment=basic, which draws the same, in batches as large; `in_memory` hands over normalised floats too, `in_memory_uint8` what the
device normalises.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from turns import Result, Side, machine, processor_seconds, ratio

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import instantiate
from imgrec.data.allocator import keep_freed_memory
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.loader import Loader
from imgrec.data.preprocess import Preprocess

BATCH, SIZE = 512, 32
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
PEER = "torchvision v2, image by image"


def pictures(images: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8))


def imgrec_side(images: int, *, floats: bool, turns: Iterator[None]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    augment: Augment = instantiate(compose_config("train", ["augment=basic"])["augment"])
    preprocess = Preprocess(image_size=SIZE, mean=MEAN, std=STD, interpolation="bilinear")
    data = InMemoryImages(pictures(images).permute(0, 3, 1, 2).contiguous(), np.zeros(images, dtype=np.int64))
    order = np.random.default_rng(1).permutation(images)
    requests = [Request(0, order[k : k + BATCH], BATCH) for k in range(0, images, BATCH)]
    with closing(Loader(data, requests, num_workers=0)) as loader:
        for _ in turns:
            for batch in loader:
                moved = augment.batch(batch.images, seed=0, epoch=0, indices=batch.indices)
                if floats:
                    preprocess.normalize(moved)


def torchvision_side(images: int, *, turns: Iterator[None]) -> None:
    torch.set_num_threads(1)
    steps = [v2.ToImage(), v2.RandomCrop(SIZE, padding=4), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    content = pictures(images).numpy()

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return images

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(content[index]), 0

    loader = DataLoader(Images(), BATCH, shuffle=True)
    for _ in turns:
        for _ in loader:
            pass


def results(*, images: int = 16384, rounds: int = 5) -> list[Result]:
    ours: dict[str, Side] = {
        "in_memory": partial(imgrec_side, images, floats=True),
        "in_memory_uint8": partial(imgrec_side, images, floats=False),
    }
    seconds = processor_seconds({PEER: partial(torchvision_side, images), **ours}, rounds=rounds)
    for name, spent in seconds.items():
        print(f"{name:<40}{median(spent) / images * 1e6:8.1f} us of the processor's time an image")
    return [Result(name=name, peer=PEER, ratio=ratio(seconds, PEER, name), runs=rounds, machine=machine()) for name in ours]


def main() -> None:
    given = {"images": "16384", "rounds": "5", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for result in results(images=int(given["images"]), rounds=int(given["rounds"])):
        print("{name:<32}{ratio:6.2f} times {peer}, median of {runs} rounds".format_map(result))


if __name__ == "__main__":
    main()
