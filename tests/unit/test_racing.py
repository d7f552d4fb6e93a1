"""Several things at once: what ends, what is cancelled, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from rkfleet.racing import Finished, run_until, until_first


class Stage:
    """Remembers who is running; `open` ends whoever waits."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.open = asyncio.Event()

    async def play(self, name: str, *, waits: bool = True, error: Exception | None = None) -> str:
        self.running.append(name)
        try:
            if waits:
                await self.open.wait()
            if error is not None:
                raise error
            return name
        finally:
            self.running.remove(name)

    async def never(self, name: str) -> None:
        self.running.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            self.running.remove(name)


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Give a stage that must be empty at the end."""
    made = Stage()
    yield made
    assert made.running == []
    assert len(asyncio.all_tasks()) == 1


def test_work_that_ends_first_gives_its_result_and_what_would_have_ended_it_is_cancelled() -> None:
    """Also when both end at once."""

    async def scenario() -> None:
        async with stage() as at:
            assert await run_until(at.play("work", waits=False), at.never("end")) == Finished("work")
            assert await run_until(at.play("work", waits=False), at.play("end", waits=False)) == Finished("work")

    asyncio.run(scenario())


def test_work_that_nobody_wants_any_more_is_cancelled_after_a_word() -> None:
    """The word is said while the work still runs."""

    async def scenario() -> None:
        async with stage() as at:
            said: list[list[str]] = []
            ended = await run_until(at.never("work"), at.play("end", waits=False), at_end=lambda: said.append(list(at.running)))
            assert ended is None
            assert said == [["work"]]

    asyncio.run(scenario())


def test_errors_of_either_are_raised_as_they_are() -> None:
    """And the other does not outlive them."""

    async def scenario() -> None:
        async with stage() as at:
            with pytest.raises(ValueError, match="work"):
                await run_until(at.play("work", waits=False, error=ValueError("work")), at.never("end"))
            with pytest.raises(ValueError, match="end"):
                await run_until(at.never("work"), at.play("end", waits=False, error=ValueError("end")))

    asyncio.run(scenario())


def test_a_caller_that_is_cancelled_leaves_nothing_behind() -> None:
    """Both functions end what they began."""

    async def scenario() -> None:
        async with stage() as at:
            for racing in (run_until(at.never("a"), at.never("b")), until_first(at.never("a"), at.never("b"), at.never("c"))):
                task = asyncio.ensure_future(racing)
                while len(at.running) < 2:
                    await asyncio.sleep(0)  # noqa: TID251 (lets them begin)
                task.cancel()
                await asyncio.wait((task,))
                assert task.cancelled()
                assert at.running == []

    asyncio.run(scenario())


def test_of_several_the_first_is_told_and_an_error_is_raised_in_a_group() -> None:
    """What ended by itself is returned by its coroutine."""

    async def scenario() -> None:
        async with stage() as at:
            first, other = at.play("first", waits=False), at.never("other")
            assert await until_first(first, other) == {first}
            with pytest.raises(ExceptionGroup):
                await until_first(at.play("bad", waits=False, error=ValueError("bad")), at.never("other"))

    asyncio.run(scenario())
