"""Items of many requests in batches: a bounded queue, a deadline, and threads that work on the batches."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
PACE = 0.1  # weight of the newest batch in the mean seconds an item


class QueueFull(Exception):
    """Too many items are accepted and not answered. retry_after_s: in about this time there is room."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Admission(Generic[Item, Answer]):
    """The places that one request holds."""

    def __init__(self, batcher: "Batcher[Item, Answer]") -> None:
        self._batcher = batcher
        self.count = self.preparing = 0

    def grow(self, count: int) -> None:
        """Hold the places of `count` more items; QueueFull where there are not so many."""
        batcher = self._batcher
        if batcher.admitted + count > batcher.max_admitted:
            raise QueueFull(batcher.retry_after_s())
        batcher.admitted += count
        batcher.preparing += count
        self.count += count
        self.preparing += count

    async def answer(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to the admitted items, each in whatever batch; raises what `work` raised."""
        batcher, loop = self._batcher, asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        batcher.preparing -= len(items)
        self.preparing -= len(items)
        for item, future in zip(items, futures, strict=True):
            batcher.ready.put_nowait((item, future))
        await asyncio.gather(*futures, return_exceptions=True)  # all: none is worked on for a request that holds no place
        return [future.result() for future in futures]


class Batcher(Generic[Item, Answer]):
    """Calls `work` on up to `batch_size` items at once, in `threads` threads; to be used on one event loop.

    A request first admits its items, then prepares them, then asks for their answers. A thread that is free takes one of
    `parts` equal parts of what there is, in the order in which it came, and one item at least. Only where items of its part
    are still being prepared it waits for them, `max_wait_s` at most: an item that comes alone never waits.

    parts=1 is for work that takes a batch little longer than an item, as on a GPU. Where it takes each item as long as alone,
    a batch only makes its items wait for each other, and 2 * threads keeps them apart until many wait ("factoring" of Hummel,
    Schonberg and Flynn, https://doi.org/10.1145/135226.135232).
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer]],
        *,
        batch_size: int,
        max_wait_s: float,
        max_admitted: int,
        threads: int = 1,
        parts: int = 1,
        start_thread: Callable[[], object] = lambda: None,
        observe: Callable[[int, float], object] = lambda items, seconds: None,
    ) -> None:
        self.admitted = 0  # items that are accepted and not answered
        self.max_admitted = max_admitted
        self._work, self._observe = work, observe
        self._batch_size, self._max_wait_s, self._threads, self._parts = batch_size, max_wait_s, threads, parts
        self.ready: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()
        self.preparing = 0  # items that are admitted and not yet ready
        self._forming = asyncio.Lock()
        self._pool = ThreadPoolExecutor(threads, "imgrec-network", start_thread)
        self._seconds = 0.0  # an item takes in one thread
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._loops = [asyncio.create_task(self._loop()) for _ in range(self._threads)]

    async def close(self) -> None:
        """End the threads; what is still admitted gets no answer."""
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._pool.shutdown()

    @contextmanager
    def admit(self) -> Iterator["Admission[Item, Answer]"]:
        """Hold the place of one item, and of more by `Admission.grow`, until the end of the block; QueueFull where there is none."""
        admission = Admission(self)
        admission.grow(1)
        try:
            yield admission
        finally:
            self.admitted -= admission.count
            self.preparing -= admission.preparing  # of a request that was refused

    def retry_after_s(self) -> int:
        """Seconds until all that is admitted now is answered, 1 or more."""
        return max(1, math.ceil(self.admitted * self._seconds / self._threads))

    async def _loop(self) -> None:
        while True:
            async with self._forming:
                batch = await self._next_batch()
            try:
                answers = await self._worked([item for item, _ in batch])
            except Exception as error:  # of the network: every request in the batch gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _worked(self, items: list[Item]) -> Sequence[Answer]:
        """An answer to each item, which a thread computes and which is timed."""
        start = time.perf_counter()
        answers = await asyncio.get_running_loop().run_in_executor(self._pool, self._work, items)
        assert len(answers) == len(items)
        seconds = time.perf_counter() - start
        self._seconds += PACE * (seconds / len(items) - self._seconds)
        self._observe(len(items), seconds)
        return answers

    async def _next_batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Items whose requests still wait, one or more."""
        while True:
            batch = [await self.ready.get()]
            deadline = asyncio.get_running_loop().time() + self._max_wait_s
            while len(batch) < min(self._batch_size, self._part(len(batch))):
                if not self.ready.empty():
                    batch.append(self.ready.get_nowait())
                    continue
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self.ready.get())
                except TimeoutError:
                    break
            if waiting := [(item, future) for item, future in batch if not future.done()]:
                return waiting

    def _part(self, taken: int) -> int:
        """What one thread takes of all that waits or is being prepared."""
        return max(1, (taken + self.ready.qsize() + self.preparing) // self._parts)
