"""Sides of a comparison, each in a process of its own, that take turns: what they share of the machine, they share alike."""

import os
import platform
import resource
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, TypedDict

TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "pillow", "simplejpeg")

Lap = Callable[[], object]
Side = Callable[[], AbstractContextManager[Lap]]  # to be imported by another process: a function of a module, or a partial


class Result(TypedDict):
    """A line of results.json."""

    name: str
    peer: str
    ratio: float  # of the processor's time: the peer's divided by imgrec's
    runs: int
    machine: str


def processor_seconds(sides: Mapping[str, Side], *, rounds: int) -> dict[str, list[float]]:
    """Of each side and round, with its child processes; a first round warms the caches and counts for none."""
    started = {name: _Started(side) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for lap in range(rounds + 1):
        for name, side in started.items():
            spent = side.lap()
            if lap:
                seconds[name].append(spent)
    for side in started.values():
        side.end()
    return seconds


def ratio(seconds: Mapping[str, list[float]], peer: str, ours: str) -> float:
    """How many times less processor time: of the medians."""
    return round(median(seconds[peer]) / median(seconds[ours]), 2)


class _Started:
    def __init__(self, side: Side) -> None:
        self._here, there = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(side, there))
        self._process.start()
        there.close()

    def lap(self) -> float:
        self._here.send("lap")
        spent = self._here.recv()
        assert isinstance(spent, float)
        return spent

    def end(self) -> None:
        self._here.send("end")
        self._process.join()


def _serve(side: Side, calls: Connection) -> None:
    with side() as lap:
        while calls.recv() == "lap":
            before = _spent()
            lap()
            calls.send(_spent() - before)


def _spent() -> float:
    """Processor seconds so far of this process and its children, those that are still there too."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(map(_child_spent, active_children()))


def _child_spent(child: Any) -> float:
    with open(f"/proc/{child.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # of the columns utime and stime


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    """'2 cores of AMD EPYC, Python 3.11.7, torch 2.14.1, ...'"""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{os.cpu_count()} cores of {processor()}, Python {platform.python_version()}, {versions}"
