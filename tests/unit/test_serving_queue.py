"""The queue in front of a worker: order, limits, and what leaves it."""

import asyncio

import pytest

from agent.serving.queue import Queue, retry_after_seconds
from rkfleet.clock import give_way
from rkfleet.errors import ResourceExhausted


class Line:
    """Requests at one replica, each held until the test lets it go."""

    def __init__(self, tasks: asyncio.TaskGroup, *, max_concurrent: int = 1, max_queued: int = 2) -> None:
        self.queue = Queue()
        self.begun: list[str] = []
        self._tasks = tasks
        self._limits = {"max_concurrent": max_concurrent, "max_queued": max_queued}

    async def _hold(self, name: str, release: asyncio.Event) -> None:
        async with self.queue.place("u", **self._limits, seconds_per_request=2.0):
            self.begun.append(name)
            await release.wait()

    async def come(self, name: str) -> tuple[asyncio.Task[None], asyncio.Event]:
        release = asyncio.Event()
        task = self._tasks.create_task(self._hold(name, release))
        await asyncio.wait((task,), timeout=0.001)
        return task, release

    async def go(self, request: tuple[asyncio.Task[None], asyncio.Event]) -> None:
        request[1].set()
        await request[0]


def test_requests_begin_in_the_order_in_which_they_came() -> None:
    async def scenario() -> list[str]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            line = Line(tasks)
            first, second, third = [await line.come(name) for name in ("first", "second", "third")]
            assert (line.begun, line.queue.in_flight("u")) == (["first"], 3)
            for request in (first, second, third):
                await line.go(request)
            assert line.queue.in_flight("u") == 0
            return line.begun

    assert asyncio.run(scenario()) == ["first", "second", "third"]


def test_one_more_than_may_wait_is_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> ResourceExhausted:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            line = Line(tasks)
            requests = [await line.come(str(number)) for number in range(3)]
            with pytest.raises(ResourceExhausted) as caught:
                async with line.queue.place("u", max_concurrent=1, max_queued=2, seconds_per_request=2.0):
                    pass
            for request in requests:
                await line.go(request)
            return caught.value

    error = asyncio.run(scenario())
    assert (error.details["code"], error.retry_after_seconds) == ("queue_full", 6)
    assert "1 requests run and 2 wait" in error.message


def test_a_request_that_leaves_while_it_waits_gives_up_its_turn() -> None:
    async def scenario() -> list[str]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            line = Line(tasks)
            first, second, third = [await line.come(name) for name in ("first", "second", "third")]
            second[0].cancel()
            await asyncio.wait((second[0],))
            await line.go(first)
            await line.go(third)
            return line.begun

    assert asyncio.run(scenario()) == ["first", "third"]


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a_place_that_comes_together_with_a_cancellation_is_not_lost(cancel_first: bool) -> None:
    async def scenario() -> int:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            line = Line(tasks)
            first, second, third = [await line.come(name) for name in ("first", "second", "third")]
            if cancel_first:
                second[0].cancel()
                first[1].set()
            else:
                first[1].set()
                await first[0]
                second[0].cancel()
            third[1].set()
            await asyncio.wait((first[0], second[0], third[0]))
            assert "third" in line.begun
            return line.queue.in_flight("u")

    assert asyncio.run(scenario()) == 0


def test_as_many_run_at_once_as_may() -> None:
    async def scenario() -> list[str]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            line = Line(tasks, max_concurrent=2)
            requests = [await line.come(name) for name in ("first", "second", "third")]
            begun = list(line.begun)
            for request in requests:
                await line.go(request)
            return begun

    assert asyncio.run(scenario()) == ["first", "second"]


@pytest.mark.parametrize(
    ("waiting", "concurrent", "seconds", "after"), [(0, 1, 0.1, 1), (8, 1, 3.0, 27), (8, 4, 3.0, 7), (1000, 1, 10.0, 60)]
)
def test_the_time_to_come_back_follows_the_queue_within_bounds(waiting: int, concurrent: int, seconds: float, after: int) -> None:
    assert retry_after_seconds(waiting, concurrent, seconds) == after


def test_requests_that_run_together_have_places_of_their_own_and_hand_them_on() -> None:
    """The number of a place is the runtime's slot: below the limit, and never given to two at once."""
    held: set[int] = set()
    seen: list[int] = []

    async def hold(queue: Queue) -> None:
        async with queue.place("u", max_concurrent=3, max_queued=20, seconds_per_request=1.0, choose=max) as place:
            assert place not in held
            assert queue.taken("u") >= held
            held.add(place)
            seen.append(place)
            await give_way()
            held.discard(place)

    async def scenario() -> None:
        queue = Queue()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(12):
                tasks.create_task(hold(queue))
        assert (queue.in_flight("u"), queue.waiting("u"), queue.taken("u")) == (0, 0, frozenset())

    asyncio.run(scenario())
    assert sorted(seen) == [0] * 4 + [1] * 4 + [2] * 4
