"""Sides of a comparison, each in a process of its own, that take turns: what they share of the machine, they share alike.

A side is a function of a module, or a partial of one, so that the other process can import it. It is called with its turns:

    def side(root, *, turns):
        loader = ...
        for _ in turns:  # until they end
            work
"""

import os
import platform
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import active_children, get_context, set_start_method
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NotRequired, Protocol, TypedDict

TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "pillow", "simplejpeg")


class Side(Protocol):
    def __call__(self, *, turns: Iterator[None]) -> object: ...


class Result(TypedDict):
    """A line of results.json."""

    name: str
    peer: str
    ratio: float
    runs: int
    machine: str
    us_per_image: NotRequired[float]  # imgrec's, of the processor's time
    decibel: NotRequired[float]  # to PIL's picture
    bytes_per_image: NotRequired[int]  # on disk


def processor_seconds(sides: Mapping[str, Side], *, rounds: int) -> dict[str, list[float]]:
    """Of each side and round, with its child processes; a first round warms the caches and counts for none."""
    started = {name: _Started(side) for name, side in sides.items()}
    try:
        laps = [{name: side.lap() for name, side in started.items()} for _ in range(rounds + 1)]
    finally:
        for side in started.values():
            side.end()
    return {name: [lap[name] for lap in laps[1:]] for name in sides}


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """How many times the processor time of `under` `over` takes: the median over the rounds."""
    return median(one / other for one, other in zip(seconds[over], seconds[under], strict=True))


class _Started:
    def __init__(self, side: Side) -> None:
        self._here, there = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(side, there))
        self._process.start()
        there.close()

    def lap(self) -> float:
        self._here.send(None)
        return float(self._here.recv())

    def end(self) -> None:
        self._here.close()
        self._process.join()


def _serve(side: Side, calls: Connection) -> None:
    fork_workers()
    side(turns=_turns(calls))


def fork_workers() -> None:
    """Workers are started as the system starts them: spawn, which a spawned process would use, is for the sides."""
    set_start_method(None, force=True)


def _turns(calls: Connection) -> Iterator[None]:
    before = 0.0  # also counted is what threads of this side do during the turns of others, such as reading ahead
    with suppress(EOFError):
        while True:
            calls.recv()
            yield
            now = _spent()
            calls.send(now - before)
            before = now


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
