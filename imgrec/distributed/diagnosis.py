"""The status of each rank, from the messages of the heartbeat, and the line that names a dead or hanging one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WAITING = "waiting for the others"  # how `doing` begins in front of a collective
ALONE = ("starting", "reading", "compiling")  # a rank may take any time for these, while no other waits for it
# How `at` begins of a rank that may take minutes by itself, and the file on its stack that tells: torch.compile, a first
# import from a shared file system.
BY_ITSELF = {
    "compiling, at ": ("torch/_dynamo/convert_frame.py", "torch/_inductor/compile_fx.py"),
    "importing, at ": ("<frozen importlib._bootstrap",),
}
GAVE_UP = "in a collective that failed"  # `at` of a rank whose collective timed out
# Files of the main thread in a collective: called directly, for the flags, DDP's broadcast of buffers, its all-reduce.
COLLECTIVE = ("torch/distributed/", "distributed/flag_reduction.py", "nn/parallel/distributed.py", "torch/autograd/graph.py")
NAMED = 3  # ranks named in a sentence
GATHER_S = 0.3  # after a death: those that died with it are named with it
REFUSED_ELSEWHERE = "another rank was refused, and prints the error itself"
AGAIN = "Start the same command again to resume from the last checkpoint."

Message = dict[str, Any]


@dataclass
class RankStatus:
    """A rank as another one sees it, with times in time.monotonic() of that other."""

    rank: int
    last_message_at: float
    progress_at: float  # when it last set `doing`
    host: str = ""
    pid: int = 0  # 0 before its first message
    doing: str = "starting"
    progress_count: int = -1  # how often it has set `doing`
    at: str = ""  # file:line of its main thread, once `doing` was not set for a while
    left: str | None = None  # why it ended by itself
    failed: bool = False  # it ended by an exception
    refused: bool = False  # by an ImgrecError, which it prints itself
    disconnected_at: float | None = None  # when its connection ended

    def update(self, message: Message, now: float) -> None:
        """Update from a message of this rank, whose keys are names of the fields."""
        self.last_message_at = now
        if message.get("progress_count", self.progress_count) != self.progress_count:
            self.progress_at = now
        vars(self).update({key: value for key, value in message.items() if key in vars(self)})

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid})" if self.pid else f"rank {self.rank}"

    @property
    def waits(self) -> bool:
        """In front of or inside a collective, as far as can be seen."""
        return self.doing.startswith(WAITING) or self.at == GAVE_UP or any(file in self.at for file in COLLECTIVE)

    @property
    def works_alone(self) -> bool:
        return not self.waits and (self.doing.startswith(ALONE) or self.at.startswith(tuple(BY_ITSELF)))

    @property
    def step(self) -> int:
        match = re.search(r"step (\d+)", self.doing)
        return int(match[1]) if match else -1


def find_dead(statuses: Sequence[RankStatus], now: float, timeout_s: float, again: str = AGAIN) -> str | None:
    """A line with the rank that has died, its host and what it was doing; None while all of them live.

    In this order: a rank that failed by an exception; connections that ended without a message (the process was
    killed); no message for `timeout_s` (the process was stopped, or its machine or network is down).
    """
    if failed := [status for status in statuses if status.failed]:
        if failed[0].refused:
            return REFUSED_ELSEWHERE
        rest = f" (so did {_ranks(failed[1:])})" if failed[1:] else ""
        return f"{failed[0].name} failed: {failed[0].left}{rest}. Fix that, then start the same command again to resume."
    running = [status for status in statuses if status.left is None]
    dead = [status for status in running if status.disconnected_at is not None]
    # A machine that goes takes all of its ranks along: name them together.
    if dead and now - min(status.disconnected_at for status in dead if status.disconnected_at is not None) >= GATHER_S:
        return f"{_each(dead, lambda status: f'{status.name} died while {status.doing}')}. {again}"
    if silent := [status for status in running if status.disconnected_at is None and now - status.last_message_at >= timeout_s]:
        listed = _each(silent, lambda status: f"{status.name} has given no sign for {timeout_s:g} s; it was {status.doing}")
        return f"{listed}. Is its machine up, is the process stopped? {again}"
    return None


def find_hang(statuses: Sequence[RankStatus], now: float, timeout_s: float, again: str = AGAIN) -> str | None:
    """A line with the rank that the others wait for, when none has set `doing` for `timeout_s`; None while one has.

    None too while every rank works by itself (ALONE, a compile, an import), as reading a huge folder takes its time.
    """
    running = [status for status in statuses if status.left is None]
    if not running or any(now - status.progress_at < timeout_s for status in running):
        return None
    if all(status.works_alone for status in running):
        return None
    behind = lagging_ranks(running)
    listed = _each(behind, lambda status: f"{status.name} is {status.doing}{f' ({status.at})' if status.at else ''}")
    others = [status for status in running if status not in behind]
    rest = f"; {_ranks(others)} {'is' if len(others) == 1 else 'are'} {others[0].doing}" if others else ""
    return f"nothing has moved for {timeout_s:g} s: {listed}{rest}. {again} If it was only slow, set trainer.timeout_s={2 * timeout_s:g}."


def lagging_ranks(running: Sequence[RankStatus]) -> list[RankStatus]:
    """The ranks that the others wait for: of those that do not wait, else of all, the ones at the lowest step."""
    behind = [status for status in running if not status.doing.startswith(WAITING)] or list(running)
    behind = [status for status in behind if not status.waits] or behind
    lowest = min(status.step for status in behind)
    return [status for status in behind if status.step == lowest]


def _each(statuses: Sequence[RankStatus], describe: Callable[[RankStatus], str]) -> str:
    more = f"; and {_ranks(statuses[NAMED:])}" if len(statuses) > NAMED else ""
    return "; ".join(describe(status) for status in statuses[:NAMED]) + more


def _ranks(statuses: Sequence[RankStatus]) -> str:
    if len(statuses) > NAMED:
        return f"{len(statuses)} other ranks"
    return f"rank{'s' if len(statuses) > 1 else ''} {', '.join(str(status.rank) for status in statuses)}"
