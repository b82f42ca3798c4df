"""The last resorts of a training process: to end at once with a line, and to end a stop that finds no step boundary."""

import os
import sys
import threading
import time
from collections.abc import Callable

from imgrec import stopping

GRACE_S = 15.0  # a stop should be over inside 20 s
SAVING_S = 120.0  # for a save that has begun, and for the way out after it
FLUSH_S = 3.0


def end_process(line: str | None, code: int, say: Callable[[str], None] | None = None) -> None:
    """Print a line on stderr, hand it to `say`, flush and leave with `code`, from any thread.

    For when the main thread sits in a collective or a read that nothing interrupts. What it may hold the lock of (a stream, the screen) is waited
    for no longer than FLUSH_S.
    """
    if line is not None:
        os.write(2, f"imgrec: {line}\n".encode())

    def flush() -> None:
        if line is not None and say is not None:
            say(line)
        sys.stdout.flush()
        sys.stderr.flush()

    last = threading.Thread(target=flush, daemon=True)
    last.start()
    last.join(FLUSH_S)
    os._exit(code)


class Watchdog:
    """A thread that ends this process with exit code 75 when it was asked to stop `grace_s` ago and no step boundary came.

    The main thread then sits where Python runs no code of ours: a compile, a read from a share that is gone. `saving_since` gives the
    time.monotonic() at which the save under way began, None without one; `saved` says what was saved last, for the line: "step 120 of epoch 3",
    None for nothing. A save, and the way out after it, may take SAVING_S. Use it as a context manager around all of a training.
    """

    def __init__(
        self,
        *,
        saving_since: Callable[[], float | None],
        saved: Callable[[], str | None],
        say: Callable[[str], None] | None = None,
        grace_s: float = GRACE_S,
        saving_s: float = SAVING_S,
    ) -> None:
        self._saving_since, self._saved, self._say = saving_since, saved, say
        self._grace_s, self._saving_s = grace_s, saving_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="imgrec watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        began: float | None = None  # the newest save since the stop was asked for
        while not self._over.wait(min(0.5, self._grace_s / 4)):
            reason, waited = stopping.asked(), stopping.asked_for()
            if reason is None:
                began = None
                continue
            began = self._saving_since() or began
            if began is None and waited > self._grace_s:
                since = "nothing was saved" if (last := self._saved()) is None else f"nothing was saved since {last}"
                end_process(
                    f"stopped by {reason}; no step boundary came within {self._grace_s:g} s: {since}. Start the same command again to go on.",
                    stopping.STOPPED,
                    self._say,
                )
            if began is not None and time.monotonic() - began > self._saving_s:
                end_process(
                    f"stopped by {reason}; the save that began then did not end within {self._saving_s:g} s. "
                    "Start the same command again to go on from the last checkpoint.",
                    stopping.STOPPED,
                    self._say,
                )
