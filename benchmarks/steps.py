"""Steps of a run's network timed on one process and on several that share the global batch, in turns: what benchmarks/scaling.py prints."""

import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from imgrec.config.instantiate import instantiate
from imgrec.config.schema import RunConfig
from imgrec.data.preprocess import Preprocess
from imgrec.distributed.flag_reduction import FlagReduction
from imgrec.training.checkpoint import to_cpu, write_checkpoint
from imgrec.training.optimizer import build_optimizer

EVALUATED = 256  # images of a batch of validation
Times = dict[str, list[float]]  # seconds
Way = Callable[[], object]  # gives a float, seconds, where it times a part of what it does


class Sizes(NamedTuple):
    """Bytes."""

    gradients: int
    checkpoint: int


def classes(run: RunConfig) -> int:
    return run.data.num_classes or 10


class Steps:
    """A run's network, loss and optimizer on made-up pictures."""

    def __init__(self, run: RunConfig) -> None:
        torch.manual_seed(run.seed)
        self.layout = torch.channels_last if run.trainer.channels_last else torch.contiguous_format
        self.net = instantiate(run.model, num_classes=classes(run)).to(memory_format=self.layout)
        self.loss = instantiate(run.loss)
        self.loss.set_class_counts(torch.ones(classes(run), dtype=torch.int64))
        self.optimizer = self.optimizer_of(self.net, run)
        self.prep = Preprocess(
            image_size=run.data.image_size, mean=run.data.mean, std=run.data.std, interpolation=run.data.interpolation
        )
        side = run.data.image_size
        self.images = torch.randint(
            0, 256, (max(int(run.batch_size), EVALUATED), run.data.channels, side, side), dtype=torch.uint8
        )
        self.targets = F.one_hot(torch.arange(len(self.images)) % classes(run), classes(run)).float()

    @staticmethod
    def optimizer_of(net: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
        return build_optimizer(run.optim, net, batch=int(run.batch_size), decay_on=run.decay_on, layer_decay=1.0, layers=None)

    def forward(self, net: nn.Module, count: int) -> Tensor:
        pixels = self.prep(self.images[:count]).contiguous(memory_format=self.layout)
        found: Tensor = self.loss(net(pixels).float(), self.targets[:count]).mean()
        return found

    def step(self, net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        self.forward(net, count).backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(self, count: int) -> None:
        self.net.eval()
        with torch.no_grad():
            self.forward(self.net, count)
        self.net.train()

    def states(self) -> dict[str, Any]:
        return {"state_dict": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}


def alone(steps: Steps, batch: int, share: int, copy: dict[str, Any], folder: Path) -> dict[str, Way]:
    """What one process does while the others wait."""
    return {
        "step": lambda: steps.step(steps.net, steps.optimizer, batch),
        "half": lambda: steps.step(steps.net, steps.optimizer, batch // 2),
        "share": lambda: steps.step(steps.net, steps.optimizer, share),
        "forward": lambda: steps.forward(steps.net, batch),
        "validate": lambda: steps.evaluate(EVALUATED),
        "validate half": lambda: steps.evaluate(EVALUATED // 2),
        "hold": lambda: to_cpu(steps.states()),
        "write": lambda: write_checkpoint(copy, folder / "last.ckpt"),
    }


def together(steps: Steps, share: int, run: RunConfig, gradients: int) -> dict[str, Way]:
    """What all processes do at once."""
    pair = deepcopy(steps.net)
    optimizer = steps.optimizer_of(pair, run)
    parallel = DistributedDataParallel(pair, gradient_as_bucket_view=True)
    flat, flags, reduction = torch.zeros(gradients // 4), torch.zeros(2, dtype=torch.int32), FlagReduction(2)

    def apart() -> None:
        with parallel.no_sync():
            steps.step(parallel, optimizer, share)

    def reduce_flags() -> None:
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)

    def before_step(*boundary: Callable[[], object], timed: int) -> float:
        """A step after these calls; the seconds of one of them."""
        seconds = []
        for call in boundary:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        steps.step(parallel, optimizer, share)
        return seconds[timed]

    exchange = reduction.result, lambda: reduction.start(False, False)
    return {
        "ddp": lambda: steps.step(parallel, optimizer, share),
        "ddp apart": apart,
        "all-reduce": lambda: distributed.all_reduce(flat),
        "flags": reduce_flags,
        "flags awaited": lambda: before_step(reduce_flags, timed=0),
        "flags read": lambda: before_step(*exchange, timed=0),
        "flags started": lambda: before_step(*exchange, timed=1),
    }


def measure(run: RunConfig, *, rounds: int, laps: int) -> tuple[Times, Sizes] | None:
    """Seconds of each way in each round, the mean of `laps`; the slowest process counts. None in all processes but the first."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, count, batch = distributed.get_rank(), distributed.get_world_size(), int(run.batch_size)
    if batch % count or batch < 2:
        raise SystemExit(f"batch_size={batch} cannot be shared by {count} processes. Set batch_size={count * 16}.")
    steps = Steps(run)
    gradients = sum(parameter.numel() for parameter in steps.net.parameters()) * 4
    steps.step(steps.net, steps.optimizer, batch)  # the optimizer has its states now
    found: Times = {}
    with tempfile.TemporaryDirectory(prefix="imgrec-scaling-") as folder:
        by_one = alone(steps, batch, batch // count, to_cpu(steps.states()), Path(folder))
        ways = by_one | together(steps, batch // count, run, gradients)
        for turn in range(rounds + 1):  # the first warms up and counts for none
            for name, way in ways.items():
                distributed.barrier()
                times = 0 if name in by_one and rank else {"write": 1, "flags": 20 * laps}.get(name, laps)
                start = time.perf_counter()
                parts = [way() for _ in range(times)]
                whole = time.perf_counter() - start
                timed = [part for part in parts if isinstance(part, float)]
                took = torch.tensor(sum(timed) if timed else whole) / max(1, times)
                distributed.all_reduce(took, distributed.ReduceOp.MAX)
                if turn:
                    found.setdefault(name, []).append(took.item())
        checkpoint = sum(file.stat().st_size for file in Path(folder).glob("last.ckpt"))
    distributed.destroy_process_group()
    return (found, Sizes(gradients, checkpoint)) if rank == 0 else None
