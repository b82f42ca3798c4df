"""imgrec's batched augmentation against torchvision's v2 transforms, one picture at a time: python benchmarks/augment.py [rounds]

512 pictures of 3 x 32 x 32, float in [0, 1], on one thread (a loader's worker has one too). The two are timed in turns, so that
whatever else the machine does falls on both; the figures are medians.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from omegaconf import OmegaConf
from torchvision.transforms import v2

from imgrec.data.augment import Augment

CONF = Path(__file__).parents[1] / "conf" / "augment"
OFF = {key: value for key, value in OmegaConf.load(CONF / "none.yaml").items() if key != "_target_"}
AFFINE = {"flip": 0.5, "rotation": 40.0, "shift": 0.2, "shear": 0.2, "zoom": 0.2, "fill": "nearest"}
CASES = {
    "basic": (
        {"flip": 0.5, "crop_padding": 0.125},
        v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]),
    ),
    # torchvision has no nearest fill here: it fills with zeros, which is less work.
    "affine": (
        AFFINE,
        v2.Compose(
            [
                v2.RandomAffine(40, (0.2, 0.2), (0.8, 1.2), shear=0.2, interpolation=v2.InterpolationMode.BILINEAR),
                v2.RandomHorizontalFlip(),
            ]
        ),
    ),
    "elastic": ({"elastic_alpha": 30.0, "elastic_sigma": 3.0}, v2.ElasticTransform(alpha=30.0, sigma=3.0)),
    "erase": ({"erase": 0.5}, v2.RandomErasing(p=0.5)),
}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    images, indices = torch.rand(512, 3, 32, 32), torch.arange(512)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {versions}, medians of {rounds} rounds")
    for name, (settings, transform) in CASES.items():
        augment = Augment(**{**OFF, **settings})
        pair: tuple[Callable[[], object], Callable[[], object]] = (
            lambda augment=augment: augment.batch(images, seed=0, epoch=0, indices=indices),
            lambda transform=transform: torch.stack([transform(image) for image in images]),
        )
        for warm in pair:
            warm()
        times = [[seconds(function) for function in pair] for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:8} imgrec {1e3 * ours:7.2f} ms   torchvision {1e3 * theirs:7.2f} ms   {theirs / ours:5.1f} times")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
