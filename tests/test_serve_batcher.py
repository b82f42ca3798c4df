"""Batches of the server: every item gets its own answer, none waits alone, and a full queue says so at once."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgrec.serving.batcher import PACE, Batcher, QueueFull


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@given(
    requests=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=12),
    batch_size=st.integers(1, 6),
    threads=st.integers(1, 3),
    parts=st.integers(1, 5),
    wait=st.sampled_from([0.0, 0.0005]),
)
def test_every_item_gets_its_own_answer(requests, batch_size, threads, parts, wait):
    """Requests of several items that are ready after some turns of the event loop."""
    sizes = []

    def work(items):
        sizes.append(len(items))
        return [item**2 for item in items]

    async def talk():
        batcher = Batcher(work, batch_size=batch_size, max_wait_s=wait, max_admitted=100, threads=threads, parts=parts)
        batcher.start()

        async def request(number, turns, count):
            with batcher.admit() as admission:
                admission.grow(count - 1)
                for _ in range(turns):
                    await asyncio.sleep(0)
                return await admission.answer([100 * number + part for part in range(count)])

        answers = await asyncio.gather(*(request(number, *each) for number, each in enumerate(requests)))
        left = batcher.admitted, batcher.preparing
        await batcher.close()
        return answers, left

    answers, left = run(talk())
    assert answers == [[(100 * number + part) ** 2 for part in range(count)] for number, (_, count) in enumerate(requests)]
    assert left == (0, 0)
    assert sum(sizes) == sum(count for _, count in requests)
    assert max(sizes, default=0) <= batch_size


def test_an_item_alone_does_not_wait_and_one_with_others_on_their_way_does():
    batches = []

    async def talk():
        batcher = Batcher(lambda items: batches.append(items) or items, batch_size=8, max_wait_s=1000.0, max_admitted=8)
        batcher.start()
        with batcher.admit() as alone:
            await alone.answer(["alone"])
        with batcher.admit() as first, batcher.admit() as second:
            early = asyncio.create_task(first.answer(["early"]))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not early.done()
            await asyncio.gather(early, second.answer(["late"]))
        await batcher.close()

    run(talk())
    assert batches == [["alone"], ["early", "late"]]


@pytest.mark.parametrize(
    ("threads", "parts", "sizes"),
    [(1, 1, [8, 8, 4]), (1, 2, [8, 6, 3, 1, 1, 1]), (2, 2, [8, 6, 3, 1, 1, 1]), (2, 4, [5, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1])],
)
def test_a_thread_takes_one_part_of_what_waits_in_its_order(threads, parts, sizes):
    """Twenty items wait when the threads, which work on an item each, become free."""
    batches, go = [], threading.Event()

    def work(items):
        batches.append(items)
        go.wait()
        return items

    async def talk():
        batcher = Batcher(work, batch_size=8, max_wait_s=1000.0, max_admitted=30, threads=threads, parts=parts)
        batcher.start()
        busy = []
        for thread in range(threads):
            with batcher.admit() as alone:
                busy.append(asyncio.create_task(alone.answer([-1])))
                while len(batches) <= thread:
                    await asyncio.sleep(0)
        with batcher.admit() as many:
            many.grow(19)
            waiting = asyncio.create_task(many.answer(list(range(20))))
            await asyncio.sleep(0)
            go.set()
            assert await waiting == list(range(20))
        await asyncio.gather(*busy)
        await batcher.close()

    run(talk())
    assert batches[:threads] == [[-1]] * threads
    later = sorted(batches[threads:])  # two threads may begin theirs in another order
    assert [len(batch) for batch in later] == sizes
    assert [item for batch in later for item in batch] == list(range(20))


def test_the_deadline_ends_the_wait_for_an_item_that_does_not_come():
    async def talk():
        batcher = Batcher(lambda items: items, batch_size=8, max_wait_s=0.001, max_admitted=8)
        batcher.start()
        with batcher.admit() as first, batcher.admit():
            answer = await first.answer(["early"])
        await batcher.close()
        return answer

    assert run(talk()) == ["early"]


def test_a_full_queue_refuses_at_once_and_has_room_again_after_the_answers():
    go = threading.Event()

    async def talk():
        batcher = Batcher(lambda items: go.wait() and items, batch_size=1, max_wait_s=0.0, max_admitted=3)
        batcher.start()
        with batcher.admit() as admission:
            admission.grow(2)
            waiting = asyncio.create_task(admission.answer([1, 2, 3]))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull) as full, batcher.admit():
                pass
            assert full.value.retry_after_s >= 1
            assert batcher.admitted == 3
            go.set()
            await waiting
        with batcher.admit() as admission, pytest.raises(QueueFull):
            admission.grow(3)
        assert (batcher.admitted, batcher.preparing) == (0, 0)
        await batcher.close()

    run(talk())


def test_a_full_queue_says_how_long_it_takes():
    times = []

    async def talk():
        batcher = Batcher(
            lambda items: items,
            batch_size=4,
            max_wait_s=0.0,
            max_admitted=90,
            threads=2,
            observe=lambda items, seconds: times.append(seconds / items),
        )
        batcher.start()
        with batcher.admit() as admission:
            await admission.answer([1])
            await admission.answer([2])
        assert batcher._seconds == pytest.approx(PACE * (1 - PACE) * times[0] + PACE * times[1])
        assert batcher.retry_after_s() == 1
        batcher._seconds = 0.5
        with batcher.admit() as admission:
            admission.grow(80)
            assert batcher.retry_after_s() == 21  # 81 images of half a second in two threads
        await batcher.close()

    run(talk())


@pytest.mark.parametrize("fault", [lambda: 1 // 0, list], ids=["an error", "too few answers"])
def test_an_error_of_the_network_reaches_each_request_of_the_batch_and_the_next_batch_works(fault):
    async def talk():
        batcher = Batcher(lambda items: fault() if "bad" in items else items, batch_size=4, max_wait_s=1000.0, max_admitted=4)
        batcher.start()
        with batcher.admit() as one, batcher.admit() as other:
            failed = await asyncio.gather(one.answer(["bad"]), other.answer(["good"]), return_exceptions=True)
        with batcher.admit() as again:
            assert await again.answer(["good"]) == ["good"]
        await batcher.close()
        return failed

    one, other = run(talk())
    assert isinstance(one, Exception)
    assert other is one


def test_requests_that_are_gone_take_no_thread_however_many_they_are():
    worked, go = [], threading.Event()

    def work(items):
        worked.extend(items)
        go.wait()
        return items

    async def talk():
        batcher = Batcher(work, batch_size=1, max_wait_s=0.0, max_admitted=2000)
        batcher.start()
        with batcher.admit() as admission:
            first = asyncio.create_task(admission.answer(["first"]))
            while not worked:
                await asyncio.sleep(0)
            gone = [asyncio.create_task(admission.answer([number])) for number in range(1500)]
            await asyncio.sleep(0)
            for each in gone:
                each.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            last = asyncio.create_task(admission.answer(["last"]))
            go.set()
            await asyncio.gather(first, last)
        await batcher.close()

    run(talk())
    assert worked == ["first", "last"]
