"""A thread per rank that reports what the rank is doing, and ends the run with a line when another rank dies or hangs.

    with Heartbeat(rank, world_size, timeout_s, note) as heartbeat:  # on all ranks; does nothing on one
        heartbeat.doing = "training step 12 of epoch 3"  # each assignment is a sign of life, also of the same text
        ...

All ranks enter the block, after torch.distributed is initialised. After an exception in it: if a collective failed
because another rank died, the process ends with the line about that one; otherwise the other ranks end with a line
about this one.

Rank 0 listens on a free port until all have connected; each other rank has a TCP connection to it and sends a short
line about once a second. A killed process closes its connection, so its death is known at once; a stopped process, a
crashed machine or a broken network is known after `timeout_s` without a message. imgrec.distributed.diagnosis.find_hang
says what a hang is. Rank 0 decides for all, and each rank about rank 0. Then all end with exit code 1 by os._exit,
since a collective cannot be interrupted. Work: O(ranks) a second on rank 0, O(1) on the others.

It is not torch.distributed.TCPStore, which does not report the death of a client, and whose calls block forever when
the process that hosts it is stopped.
"""

import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from imgrec.distributed import signals
from imgrec.distributed.diagnosis import AGAIN, BY_ITSELF, GAVE_UP, REFUSED_ELSEWHERE, Message, RankStatus, find_dead, find_hang
from imgrec.distributed.process_group import collective, on_first_rank
from imgrec.distributed.transport import Transport
from imgrec.distributed.watchdog import end_process
from imgrec.errors import ExitCode, ImgrecError, Stopped

REPORT_S = 1.0
REPORTS_PER_S = 256  # that rank 0 reads at most: with more ranks, each reports less often
POLL_S = 0.25  # for a stop that was requested in this process
END_GRACE_S = 3.0  # between the decision and the end, as a main thread may end by itself
OWN_END_S = 60.0  # if it does, it may be writing a checkpoint
EXPLAIN_S = 5.0
SENT_WAIT_S = 2.0
NETWORK_ERROR = re.compile(
    r"gloo|nccl|\bpeer\b|connection|socket|timed? ?out|\bstore\b|broken pipe|process ?group|collective", re.IGNORECASE
)


class Heartbeat:
    """The heartbeat of one rank. `note` writes a line to the log on rank 0, `again` ends the line about a death."""

    def __init__(self, rank: int, world_size: int, timeout_s: float, note: Callable[[str], None], again: str = AGAIN) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self._note, self._again = note, again
        self._doing, self._progress_count = "starting", 0
        self._who = {"host": socket.gethostname(), "pid": os.getpid()}
        self._report_s = min(max(REPORT_S, world_size / REPORTS_PER_S), timeout_s / 5)
        self._statuses: dict[int, RankStatus] = {}  # of this rank, and on rank 0 of all, elsewhere of rank 0
        self._connections = Transport(rank, world_size, note)
        self._left: Message | None = None
        self._left_sent = False
        self._end_line: str | None = None
        self._end_at = 0.0
        self._decided = threading.Event()
        self._explaining = False
        self._ending = threading.Lock()
        self._closing = threading.Event()
        self._stop_sent = False
        self._report_at = 0.0
        self._thread = threading.Thread(target=self._run, name="imgrec heartbeat", daemon=True)

    # What the main thread calls

    def __enter__(self) -> "Heartbeat":
        if self.world_size == 1:
            return self
        import torch
        from torch import distributed

        address = on_first_rank(self._connections.listen)
        now = time.monotonic()
        self._statuses = {
            rank: RankStatus(rank, now, now) for rank in (range(self.world_size) if self.rank == 0 else (0, self.rank))
        }
        if self.rank:
            self._connections.connect(*address, {"rank": self.rank, **self._who}, self.timeout_s)
        self._thread.start()
        with collective():
            distributed.all_reduce(torch.zeros(1))  # no rank may fail before all have connected
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                if line := self.explain(error):
                    self.end(line)
                self.leave(error)
        finally:
            self.close()

    @property
    def doing(self) -> str:
        """What this rank is doing, as in "rank 1 is ..." or "died while ..."."""
        return self._doing

    @doing.setter
    def doing(self, text: str) -> None:
        self._doing = text
        self._progress_count += 1

    def explain(self, error: BaseException) -> str | None:
        """The line about the rank that made a collective fail, after at most EXPLAIN_S; None for an error of this rank."""
        if not self._thread.is_alive() or not _is_of_the_network(error):
            return None
        self._end_at = time.monotonic() + OWN_END_S
        self._explaining = True
        self._report_at = 0.0
        self._connections.wake()
        self._decided.wait(EXPLAIN_S)
        return self._end_line

    def end(self, line: str) -> None:
        """Print the line and end this process with exit code 1. Rank 0 prints it for all, unless it has died.

        Where a rank was refused (imgrec.errors), that rank prints, and all end with exit code 2.
        """
        self._ending.acquire()  # never released: the main thread and the heartbeat's may both call this
        if line == REFUSED_ELSEWHERE:
            end_process(None, ExitCode.REFUSED)
        first = self._statuses[0]
        silent = time.monotonic() - first.last_message_at >= self.timeout_s
        prints = self.rank == 0 or first.failed or first.disconnected_at is not None or silent
        end_process(line if prints else None, ExitCode.FAILED, self._note if self.rank == 0 else None)

    def leave(self, reason: str | BaseException) -> None:
        """Tell the others that this rank ends, with a reason, or with an exception other than Stopped, which ends them too."""
        if self._left is None:
            failed = isinstance(reason, BaseException) and not isinstance(reason, Stopped)
            text = f"{type(reason).__name__}: {str(reason).strip()}".splitlines()[0][:1000] if failed else str(reason)
            self._left = {"left": text, "failed": failed, "refused": isinstance(reason, ImgrecError)}
            if self._thread.is_alive():
                self._connections.wake()
            until = time.monotonic() + SENT_WAIT_S
            while self._thread.is_alive() and time.monotonic() < until and not (self._left_sent and self._connections.sent):
                time.sleep(0.005)

    def close(self) -> None:
        """Leave, if not done yet, and stop the thread."""
        if self._thread.is_alive():
            self.leave("finished")
            self._closing.set()
            self._connections.wake()
            self._thread.join(SENT_WAIT_S + 1)
        self._connections.close()

    # The thread

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.is_set():
            self._read(min(POLL_S, self._report_s))
            now = time.monotonic()
            # This process was stopped or delayed: the others may have sent messages meanwhile.
            if now - last > 2 * self._report_s:
                for status in self._statuses.values():
                    status.last_message_at += now - last
                    status.progress_at += now - last
            last = now
            self._spread_stop()
            if now >= self._report_at:
                self._report_at = now + self._report_s  # before `_explaining` is read, which `explain` sets before this
                self._report(now)
            self._connections.send()
            if self._left is not None and not self._left_sent:
                self._connections.send(self._left)
                self._left_sent = True
            self._check(now)
            first = self._statuses[0]
            if self.rank and first.disconnected_at is not None and first.left is not None and not self._end_line:
                return  # rank 0 has ended without an error

    def _report(self, now: float) -> None:
        own = self._statuses[self.rank]
        message = {
            "doing": self._doing,
            "progress_count": self._progress_count,
            "at": GAVE_UP if self._explaining else "",
            **self._who,
        }
        own.update(message, now)
        if not own.at and now - own.progress_at > self.timeout_s / 2:
            message["at"] = own.at = _at()
        self._connections.send(message)

    def _read(self, timeout: float) -> None:
        """Wait for messages and process them."""
        for rank, message in self._connections.read(timeout):
            now = time.monotonic()
            if message is None:
                self._statuses[rank].disconnected_at = now
                continue
            self._statuses[rank].update(message, now)
            if "stop" in message:
                signals.request_stop(message["stop"])
            if "end" in message:
                self._decide_end(message["end"], now + message["in_s"])

    def _spread_stop(self) -> None:
        reason = signals.stop_reason()
        if reason is None or self._stop_sent:
            return
        self._stop_sent = True
        by_another = " on rank " in reason
        if self.rank == 0 or not by_another:
            self._connections.send({"stop": reason if by_another else f"{reason} on rank {self.rank}"})

    def _check(self, now: float) -> None:
        if self._end_line is None:
            statuses = list(self._statuses.values())
            others = [status for status in statuses if status.rank != self.rank]
            if line := find_dead(others, now, self.timeout_s, self._again):
                self._decide_end(line, now + END_GRACE_S)
            elif self.rank == 0 and self._left is None and (line := find_hang(statuses, now, self.timeout_s, self._again)):
                self._decide_end(line, now)  # at once, as nothing can wake the main threads
        elif now > self._end_at + (OWN_END_S if self._left else 0):
            self.end(self._end_line)

    def _decide_end(self, line: str, end_at: float) -> None:
        if self._end_line is None:
            if self.rank == 0:
                self._connections.send({"end": line, "in_s": end_at - time.monotonic()})
            self._end_line = line
            self._end_at = max(self._end_at, end_at)
            self._decided.set()


def _at() -> str:
    """Where the main thread is: 'at data/decode.py:41 in read'."""
    innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    if innermost is None:  # Python is shutting down
        return ""
    frames = [frame for frame, _ in traceback.walk_stack(innermost)]
    while frames[0].f_code.co_filename.startswith("<frozen os") and len(frames) > 1:
        del frames[0]  # the caller says more
    code = frames[0].f_code
    files = [frame.f_code.co_filename for frame in frames]
    begins = (begin for file in files for begin, marks in BY_ITSELF.items() if any(mark in file for mark in marks))
    return f"{next(begins, 'at ')}{'/'.join(code.co_filename.split('/')[-3:])}:{frames[0].f_lineno} in {code.co_name}"


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether an error or its cause is one that a collective raises when another process has died."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, RuntimeError | OSError) and NETWORK_ERROR.search(str(error)):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
