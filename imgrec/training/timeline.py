"""Where the time of a training goes: the seconds of its parts, measured without waiting for the device."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch

Part = Literal["data_wait", "copy", "compute", "optimizer", "communication", "validation", "checkpoint", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
PART_NAMES = {
    "data_wait": "waiting for images",
    "copy": "copying images to the device",
    "compute": "forward and backward",
    "optimizer": "optimizer",
    "communication": "waiting for the other processes",
    "validation": "validation",
    "checkpoint": "saving",
    "other": "the rest",
}
NOT_STEPS: tuple[Part, ...] = ("validation", "checkpoint")  # the others are what the training steps take
MOST_MARKS = 64  # moments that wait to be added up: to ask the device at each one would cost as much as the mark itself


class Clock(Protocol):
    """What reads the time: a stamp is a moment."""

    def stamp(self) -> Any: ...

    def seconds(self, begin: Any, end: Any) -> float | None:
        """From one stamp to the next, called once for each; None: the device has not got to `end` yet."""

    def wait(self) -> None:
        """Until the device has got to the last stamp."""


class HostClock:
    """The time of this process."""

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def wait(self) -> None:
        pass


class CudaClock:
    """The time of the current CUDA stream, whose work this process is ahead of: a stamp is an event in it.

    A moment in which the stream is idle, as the process waits for images or writes a file, counts as what the process does then.
    """

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def stamp(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        if not end.query():  # type: ignore[no-untyped-call]
            return None
        seconds: float = begin.elapsed_time(end) / 1000
        self._free.append(begin)
        return seconds

    def wait(self) -> None:
        torch.cuda.synchronize()


class Timeline:
    """Adds up the seconds of each part. There is one part at any moment, so their sum is the whole time."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.start(clock or HostClock())

    def start(self, clock: Clock) -> None:
        """Begin anew, with this clock."""
        self.clock = clock
        self.part: Part = "other"
        self._marks: deque[tuple[Part, Any]] = deque()
        self.clear()

    def clear(self) -> None:
        """Forget what was measured so far; the present part goes on."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._marks.clear()
        self._marks.append((self.part, self.clock.stamp()))

    def enter(self, part: Part) -> None:
        """From now on the time is that of `part`."""
        self.part = part
        self._marks.append((part, self.clock.stamp()))
        if len(self._marks) > MOST_MARKS:
            self._add_passed()

    @contextmanager
    def during(self, part: Part) -> Iterator[None]:
        """In the block the time is that of `part`, and then again of the part before it."""
        before = self.part
        self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def take(self) -> dict[Part, float]:
        """The seconds of each part since the last call. Waits for the device."""
        self.enter(self.part)
        self.clock.wait()
        self._add_passed()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _add_passed(self) -> None:
        while len(self._marks) > 1:
            (part, begin), (_, end) = self._marks[0], self._marks[1]
            if (seconds := self.clock.seconds(begin, end)) is None:
                return
            self._seconds[part] += seconds
            self._marks.popleft()


def share_columns(seconds: dict[Part, float]) -> dict[str, float]:
    """'data_wait_share', ...: the share of each part in their sum; none where nothing was measured."""
    whole = sum(seconds.values())
    return {share_column(part): seconds[part] / whole for part in PARTS} if whole > 0 else {}


def share_column(part: Part) -> str:
    """The name of a part's share in metrics.csv."""
    return f"{part}_share"
