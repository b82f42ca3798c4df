"""The last resorts of a training process: end at once with a line, and end a stop that finds no step boundary."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from imgrec.distributed import signals
from imgrec.errors import ExitCode

GRACE_S = 15.0  # at least: a stop of short steps should be over inside 20 s
GRACE_STEPS = 3  # several ranks stop after up to two steps
SAVING_S = 120.0  # for a save that has begun, and for the exit after it
FLUSH_S = 3.0

# Receives the line and the exit code, in a rank whose parent prints the line (imgrec.distributed.launcher).
report_end: Callable[[str, int], None] | None = None


def end_process(line: str | None, code: int, note: Callable[[str], None] | None = None) -> None:
    """Print a line on stderr and pass it to `note`, or only to `report_end`; flush, exit with `code`, from any thread.

    For a main thread in a collective or a read that nothing interrupts. It may hold the lock of a stream or a log, or
    write into a full pipe, so the output gets no more than FLUSH_S.
    """

    def flush() -> None:
        if line is not None and report_end is not None:
            report_end(line, code)
        elif line is not None:
            with suppress(OSError):  # of a terminal that was closed
                os.write(2, f"imgrec: {line}\n".encode())
            if note is not None:
                note(line)
        sys.stdout.flush()
        sys.stderr.flush()

    last = threading.Thread(target=flush, daemon=True)
    last.start()
    last.join(FLUSH_S)
    signals.exit_now(code)


class Watchdog:
    """A thread that ends this process with code 75 if no save begins within `grace_s` of a request to stop.

    The main thread is then where Python runs no code of ours: in a compile, or a read from a file system that is down.
    "auto": GRACE_STEPS times the longest step of the present kind so far, GRACE_S at least. The first of a kind may compile:
    it counts until the second is over, and one under way may take as long as any before. Before the first step of all
    is over GRACE_S is enough, as all that could be saved is. A save that begins in time, with the exit after it, may take
    SAVING_S. A context manager around a run. `leave` tells the other ranks that this one has not died; `note` writes to
    the log; `prints`: this process prints the line.
    """

    def __init__(
        self,
        *,
        grace_s: float | Literal["auto"],
        note: Callable[[str], None],
        leave: Callable[[str], None],
        prints: bool = True,
    ) -> None:
        self._grace_s = grace_s
        self._boundary_at: float | None = None  # time.monotonic() of the last step boundary
        self._kind: Hashable = None  # of the step after it
        self._steps: dict[Hashable, tuple[int, float]] = {}  # of each kind: how many, the seconds of the longest that counts
        self._longest_s = 0.0  # of all steps
        self.saving = False
        self.save_ended = -math.inf  # time.monotonic()
        self.saved_step: int | None = None  # the last one, or that of the checkpoint that the run resumed from
        self._note, self._leave, self._prints = note, leave, prints
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="imgrec watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    @property
    def grace_s(self) -> float:
        if self._grace_s != "auto":
            return self._grace_s
        _, longest_s = self._steps.get(self._kind, (0, self._longest_s))
        return max(GRACE_S, GRACE_STEPS * longest_s)

    def pass_boundary(self, kind: Hashable) -> None:
        """At each step boundary. kind: the same for steps that run the same compiled code."""
        now = time.monotonic()
        if self._boundary_at is not None:
            seconds, (count, longest_s) = now - self._boundary_at, self._steps.get(self._kind, (0, 0.0))
            self._steps[self._kind] = count + 1, seconds if count == 1 else max(longest_s, seconds)
            self._longest_s = max(self._longest_s, seconds)
        self._boundary_at, self._kind = now, kind

    @contextmanager
    def save(self, step: int) -> Iterator[None]:
        """Around a save as of `step`."""
        self.saving = True
        try:
            yield
            self.saved_step, self.save_ended = step, time.monotonic()
        finally:
            self.saving = False

    def _watch(self) -> None:
        began: float | None = None  # when a save after the request was seen
        grace_s = 0.0  # of the steps since the request: the next ones may be shorter
        while not self._over.wait(min(0.25, GRACE_S / 10)):
            reason, waited, now = signals.stop_reason(), signals.seconds_since_request(), time.monotonic()
            if reason is None:
                grace_s = 0.0
                continue
            grace_s = max(grace_s, self.grace_s)
            if began is None and (self.saving or now - self.save_ended < waited):
                began = now
            if began is None and waited > grace_s:
                since = "" if self.saved_step is None else f" since step {self.saved_step}"
                within = f"no step boundary came within {grace_s:g} s (trainer.grace_s)"
                self._end(f"stopped by {reason}; {within}: nothing was saved{since}")
            if began is not None and now - began > SAVING_S:
                self._end(f"stopped by {reason}; the save that began then did not end within {SAVING_S:g} s")

    def _end(self, line: str) -> None:
        self._leave(line)
        line = f"{line}. Start the same command again to resume."
        end_process(line if self._prints else None, ExitCode.STOPPED, self._note)
