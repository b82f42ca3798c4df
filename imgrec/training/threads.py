"""How many threads a process computes with on the CPU. More than are free cost more than they bring."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from imgrec.config.schema import TrainerConfig
from imgrec.distributed.device_checks import trains_on_cuda
from imgrec.distributed.world import World

# Operations of a training step for each thread. Two threads on two cores, ms a step (2-core EPYC, torch 2.14.1, medians of 4):
#   a step of       both idle: 1, 2 threads   both busy: 1, 2 threads
#   0.16 GFLOP         6.0,   4.5                 11,   234           LeNet, 28x28
#   0.26 GFLOP         5.7,   5.5                 20,   140           SimpleCNN, 8x8
#   0.97 GFLOP        19.6,  17.5                 44,   110           the small ResNet-20, 8x8
#   15.6 GFLOP         203,   121                568,  2281           the small ResNet-20, 32x32
OPERATIONS_PER_THREAD = 2e9
LOOKS, LOOK_S = 9, 0.005  # how often, and how many seconds apart, the load is looked at


@contextmanager
def chosen_threads(config: TrainerConfig, world: World, *, step_operations: float, saved: int | None = None) -> Iterator[None]:
    """torch's threads of a run, which the process had before afterwards.

    step_operations: of a training step on this device. saved: the threads of the run that is resumed, which "auto" keeps:
    sums over another number of threads are rounded differently.
    """
    before = torch.get_num_threads()
    if config.threads != "auto":
        threads = config.threads
    elif trains_on_cuda(config):
        threads = before
    else:
        threads = saved or _free_threads(config, world, wanted=max(1, int(step_operations / OPERATIONS_PER_THREAD)))
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_threads(config: TrainerConfig, world: World, *, wanted: int) -> int:
    """At most `wanted`: this process's share of the cores on which nothing runs. With trainer.deterministic, of all cores."""
    shared = 1 if "OMP_NUM_THREADS" in os.environ else world.local_size  # the launcher and torchrun set it to the share
    threads = min(wanted, max(1, torch.get_num_threads() // shared))
    if threads == 1 or config.deterministic:
        return threads
    free = (os.cpu_count() or 1) - running_tasks(own=world.local_size)
    return max(1, min(threads, free // world.local_size))


def running_tasks(*, own: int) -> int:
    """How many tasks run or wait for a core on this machine, beside `own`. Not the load average, which remembers the last run."""
    file = Path("/proc/loadavg")
    if not file.exists():
        return round(os.getloadavg()[0])
    looks = []
    for _ in range(LOOKS):
        looks.append(int(file.read_text().split()[3].partition("/")[0]))
        time.sleep(LOOK_S)
    return max(0, round(median(looks)) - own)
