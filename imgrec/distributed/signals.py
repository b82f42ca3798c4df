"""Requests to stop: signals and the time budget set a flag here, which the run reads where it can stop (step_boundary).

Imports no torch, which takes seconds: a signal before the handlers are installed would kill the process.
"""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from multiprocessing.util import get_temp_dir
from types import FrameType
from typing import NoReturn

from imgrec.errors import ExitCode

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # of them, those that end a command with nothing to save


class _Request:
    reason: str | None = None
    since: float  # time.monotonic()
    blocks = 0  # of request_cleared


_request = _Request()


def stop_reason() -> str | None:
    """Why the run should stop, such as "SIGTERM" or "the time budget of 5 minutes"; None while it should not."""
    return _request.reason


def seconds_since_request() -> float:
    """Seconds since the first request; 0 without one."""
    return 0.0 if _request.reason is None else time.monotonic() - _request.since


def request_stop(reason: str) -> None:
    """Ask the run of this process to stop at its next step. The first reason stays."""
    if _request.reason is None:
        _request.since = time.monotonic()
        _request.reason = reason


@contextmanager
def request_cleared() -> Iterator[None]:
    """A request to stop ends with the outermost of these blocks: with the command, not with one job of its sweep."""
    _request.blocks += 1
    try:
        yield
    finally:
        _request.blocks -= 1
        if not _request.blocks:
            _request.reason = None


def install_handlers() -> None:
    """Let SIGNALS stop the run. Only on the main thread, as Python allows it nowhere else."""
    if numbers := _handled():
        for number in numbers:
            signal.signal(number, _note_signal)
        atexit.register(_ignore_signals)


def _handled() -> list[signal.Signals]:
    """SIGNALS, without SIGHUP where nohup has it ignored; none off the main thread."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    kept = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    return kept if on_main_thread else []


def _ignore_signals() -> None:
    """Python restores the default handlers at its exit: a signal that SLURM repeats would kill a process that saved."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN)


def _note_signal(number: int, frame: FrameType | None) -> None:
    # Only a flag: a collective or a save in here could meet the other ranks in another one, and hang.
    if number == signal.SIGINT and _request.reason == signal.SIGINT.name:
        with suppress(OSError):
            os.write(2, b"\nimgrec: interrupted at once. Start the same command again to resume from the last checkpoint.\n")
        exit_now(ExitCode.INTERRUPTED)
    request_stop(signal.Signals(number).name)


class Ended(BaseException):
    """A signal ends the command. No KeyboardInterrupt, at which Lightning exits with a code and lines of its own."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else f"stopped by {signal_name(number)}")
        self.exit_code = 128 + number  # as a shell has it of a process that the signal killed


@contextmanager
def endings_raised() -> Iterator[None]:
    """ENDING_SIGNALS raise Ended in the block, so that what is half done is removed, until `install_handlers` makes them stop the run.

    They end a forked process at once, as without this.
    """
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # A shell's script ignores Ctrl-C for its background jobs, as nohup ignores SIGHUP.
    ending = [number for number in _handled() if number in ENDING_SIGNALS and signal.getsignal(number) != signal.SIG_IGN]
    before = [(number, signal.signal(number, end)) for number in ending]
    try:
        yield
    finally:
        for number, old in before:
            if signal.getsignal(number) is end:
                signal.signal(number, old)


def signal_name(number: int) -> str:
    """'SIGKILL' of 9; most real-time signals have no name in Python."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def exit_now(code: int) -> NoReturn:
    """os._exit, and no temporary folder of loader workers is left, which Python would remove at its exit."""
    try:
        if parent_process() is None:  # else the folder is that of the parent
            shutil.rmtree(get_temp_dir(), ignore_errors=True)
    finally:  # where there is none yet, it is made, for which a full disk has no room
        os._exit(code)


@contextmanager
def handlers_installed(handler: Callable[[int, FrameType | None], None] = _note_signal) -> Iterator[None]:
    """Set the handlers of `install_handlers`, or another one, and put those from before back at the end of the block.

    Off the main thread nothing is set. Signals at the exit of Python are left to the program around the block.
    """
    before = [(number, signal.signal(number, handler)) for number in _handled()]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent has ended in any way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
