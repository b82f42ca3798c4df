"""What makes the training steps of the shipped networks faster on the CPU: 16 bits, channels-last, fused optimizers, compile.

usage: python benchmarks/precision.py [rounds=5] [compile=true]

One thread, processor time, each way in turn on the same images; the ratio is to 32 bits, channels-last, fused and not compiled,
which is the default. Above 1 is slower.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from steps import Steps
from turns import machine

import imgrec
from imgrec.data.allocator import keep_freed_memory

NETWORKS = {  # overrides, batch
    "mnist_cnn 28": ("experiment=mnist_cnn data=fake data.image_size=28 data.channels=1 data.mean=[0.5] data.std=[0.25]", 64),
    "lenet 28": ("model=lenet data=fake data.image_size=28 data.channels=1 data.mean=[0.5] data.std=[0.25]", 64),
    "resnet20 8": ("data=fake data.image_size=8 data.channels=1 data.mean=[0.5] data.std=[0.25]", 64),
    "simple_cnn 32": ("model=simple_cnn data=fake", 64),
    "speed_cnn 32": ("model=speed_cnn data=fake", 16),
    "resnet20 32": ("model=resnet20 data=fake", 32),
    "vgg11_bn 32": ("model=vgg11_bn data=fake", 16),
    "resnet18 128": ("model=resnet18 model.stem=imagenet data=fake data.image_size=128", 8),
    "densenet121 64": ("model=densenet121 data=fake data.image_size=64", 4),
    "alexnet 32": ("model=alexnet data=fake", 16),
    "googlenet 32": ("model=googlenet data=fake", 8),
}
BASE = "32"


class Way:
    """Steps of a copy of a network in one of the ways."""

    def __init__(
        self, overrides: str, batch: int, *, layout: bool = True, fused: bool = True, bf16: bool = False, jit: bool = False
    ):
        run = imgrec.config.load(
            "train", [*overrides.split(), f"batch_size={batch}", f"trainer.channels_last={layout}", f"optim.fused={fused}"]
        )
        self.steps, self.batch = Steps(run), batch
        self.net = deepcopy(self.steps.net)
        self.optimizer = self.steps.optimizer_of(self.net, run)
        self.cast: Callable[[], Any] = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext
        if jit:
            self.net.compile(dynamic=False)
        for _ in range(2):
            self.step()

    def step(self) -> None:
        with self.cast():
            loss = self.steps.forward(self.net, self.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, steps: int) -> float:
        began = time.process_time()
        for _ in range(steps):
            self.step()
        return (time.process_time() - began) / steps


def measure(overrides: str, batch: int, rounds: int, compiled: bool) -> dict[str, list[float]]:
    """Seconds a step of each way in each round."""
    ways = {
        BASE: Way(overrides, batch),
        "contiguous": Way(overrides, batch, layout=False),
        "not fused": Way(overrides, batch, fused=False),
        "bf16-mixed": Way(overrides, batch, bf16=True),
    }
    if compiled:
        ways["compile"] = Way(overrides, batch, jit=True)
        ways["bf16, compile"] = Way(overrides, batch, bf16=True, jit=True)
    steps = max(1, round(0.3 / ways[BASE].seconds(1)))
    return _turns(ways, rounds, steps)


def _turns(ways: dict[str, Way], rounds: int, steps: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way.seconds(steps))
    return found


def results(rounds: int = 5, *, compiled: bool = True) -> list[dict[str, Any]]:
    """The ratio of each way's time to that of the default in the same round, for each network."""
    torch.set_num_threads(1)
    keep_freed_memory()
    listed = []
    for network, (overrides, batch) in NETWORKS.items():
        found = measure(overrides, batch, rounds, compiled)
        base = found[BASE]
        print(f"{network:<16}{median(base) * 1e3:8.1f} ms a step of {batch}", end="", flush=True)
        for name, times in found.items():
            if name != BASE:
                ratio = median(ours / theirs for ours, theirs in zip(times, base, strict=True))
                print(f"   {name} {ratio:.2f}", end="", flush=True)
                listed.append(
                    {
                        "name": f"step of {network}, {name}",
                        "peer": BASE,
                        "ratio": round(ratio, 3),
                        "runs": rounds,
                        "machine": machine(),
                    }
                )
        print()
    return listed


def main() -> None:
    given = {"rounds": "5", "compile": "true", **dict(word.split("=", 1) for word in sys.argv[1:])}
    results(int(given["rounds"]), compiled=given["compile"] == "true")


if __name__ == "__main__":
    main()
