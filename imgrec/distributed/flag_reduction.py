"""Flags that any rank may set and that all ranks act on at the same step, without waiting for one another there."""

import torch
from torch import distributed


class FlagReduction:
    """One reduction at a time: `start` it, and at the next step boundary read its `result`, which is complete by then.

    Every rank calls both in the same order, between the same collectives, so a reduction always meets its counterpart
    on the other ranks. The flags are in CPU memory, where gloo reduces them, so that no device waits.
    """

    def __init__(self, count: int) -> None:
        self._flags = torch.zeros(count, dtype=torch.int32)
        self._work: distributed.Work | None = None

    def start(self, *flags: bool) -> None:
        """Begin to reduce this rank's flags. Nothing may be under way."""
        assert self.is_complete(), "a reduction is under way"
        self._flags = torch.tensor(flags, dtype=torch.int32)
        self._work = distributed.all_reduce(self._flags, distributed.ReduceOp.MAX, async_op=True)

    def is_complete(self) -> bool:
        """Whether `result` would not wait."""
        return self._work is None or self._work.is_completed()

    def wait(self) -> None:
        """Complete the reduction that was started, if any: before this rank may end, as the others need it there."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def result(self) -> list[bool]:
        """The flags of the last `start`, each set if it was on any rank; waits for all. False before the first."""
        self.wait()
        return [bool(flag) for flag in self._flags.tolist()]
