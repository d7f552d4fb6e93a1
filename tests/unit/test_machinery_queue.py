"""The work queue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.machinery.workqueue import CONFLICT_SECONDS_MAX, RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, WorkQueue
from rkfleet.meta import Ref, ResourceName
from tests.support.clocks import ManualClock


def key(name: str) -> Ref:
    return Ref(ResourceName("boards.rkfleet.dev"), "", name)


def with_queue(test: Callable[[WorkQueue, ManualClock], Awaitable[None]]) -> Callable[[], None]:
    """Give an async test a queue whose delays run."""

    def run() -> None:
        async def scenario() -> None:
            clock = ManualClock()
            queue = WorkQueue(clock=clock, random=random.Random(1))
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                running = tasks.create_task(queue.run())
                await test(queue, clock)
                running.cancel()

        asyncio.run(scenario())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(10):
        turn = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn


@with_queue
async def test_a_key_that_waits_is_not_queued_twice(queue: WorkQueue, clock: ManualClock) -> None:
    for name in "abab":
        queue.add(key(name))
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == [key("a"), key("b")]


@with_queue
async def test_a_key_in_work_waits_for_its_worker(queue: WorkQueue, clock: ManualClock) -> None:
    queue.add(key("a"))
    await queue.get()
    queue.add(key("a"))
    queue.add(key("a"))
    assert len(queue) == 0
    assert not queue.idle
    queue.done(key("a"))
    assert await queue.get() == key("a")
    queue.done(key("a"))
    assert queue.idle


@with_queue
async def test_a_delayed_key_comes_when_it_is_due_and_the_earliest_delay_counts(queue: WorkQueue, clock: ManualClock) -> None:
    queue.add_after(key("a"), 10)
    await settle()
    queue.add_after(key("a"), 5)
    queue.add_after(key("a"), 20)
    queue.add_after(key("b"), 7)
    await settle()
    clock.advance(4.9)
    await settle()
    assert len(queue) == 0
    clock.advance(0.2)
    assert await queue.get() == key("a")
    queue.done(key("a"))
    await settle()
    clock.advance(2)
    assert await queue.get() == key("b")
    clock.advance(100)
    await settle()
    assert len(queue) == 0


@with_queue
async def test_no_delay_is_no_wait(queue: WorkQueue, clock: ManualClock) -> None:
    queue.add_after(key("a"), 0)
    assert await queue.get() == key("a")


@with_queue
async def test_failures_in_a_row_wait_longer_and_success_forgets_them(queue: WorkQueue, clock: ManualClock) -> None:
    waits = [queue.add_failed(key("a")) for _ in range(20)]
    assert RETRY_SECONDS_MIN / 2 <= waits[0] <= RETRY_SECONDS_MIN
    assert all(RETRY_SECONDS_MAX / 2 <= wait <= RETRY_SECONDS_MAX for wait in waits[14:])
    assert len(set(waits[14:])) > 1, "without jitter all would come back at once"
    queue.forget(key("a"))
    assert queue.add_failed(key("a")) <= RETRY_SECONDS_MIN


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "get", "done"]), st.sampled_from("abc")), max_size=60))
def test_every_key_that_was_added_is_worked_on_after_the_addition(steps: list[tuple[str, str]]) -> None:
    """Whatever the order: no key is in work twice, and none that was added is lost."""

    async def scenario() -> None:
        queue = WorkQueue(clock=ManualClock(), random=random.Random(1))
        working: set[Ref] = set()
        owed: set[Ref] = set()
        for step, name in steps:
            match step:
                case "add":
                    queue.add(key(name))
                    owed.add(key(name))
                case "get" if len(queue):
                    taken = await queue.get()
                    assert taken not in working
                    working.add(taken)
                    owed.discard(taken)
                case "done" if key(name) in working:
                    queue.done(key(name))
                    working.discard(key(name))
        for taken in list(working):
            queue.done(taken)
        rest = {await queue.get() for _ in range(len(queue))}
        assert rest == owed

    asyncio.run(scenario())


@with_queue
async def test_a_key_that_rests_is_given_out_once_when_its_rest_is_over(queue: WorkQueue, clock: ManualClock) -> None:
    """However often it was added meanwhile; other keys do not wait for it."""
    queue.add(key("a"))
    await queue.get()
    queue.add(key("a"))
    queue.done(key("a"), rest_seconds=1.0)
    queue.add(key("a"))
    queue.add(key("b"))
    assert await queue.get() == key("b")
    await settle()
    clock.advance(0.9)
    await settle()
    assert len(queue) == 0
    clock.advance(0.1)
    await settle()
    assert await queue.get() == key("a")
    queue.done(key("a"))
    assert len(queue) == 0
    queue.add(key("a"))
    assert len(queue) == 1, "a rest that is over holds nobody up"


@with_queue
async def test_conflicts_in_a_row_do_not_wait_longer_than_their_limit(queue: WorkQueue, clock: ManualClock) -> None:
    """Each says that somebody else got through, not that something is broken."""
    for _ in range(20):
        assert queue.add_failed(key("a"), CONFLICT_SECONDS_MAX) <= CONFLICT_SECONDS_MAX
        clock.advance(1.0)
        await settle()
        queue.done(await queue.get())
