"""Several things at once, until the first of them ends.

In: coroutines. Out: which ended, or the result of the one that matters. Every answer that stays open runs beside something that ends it: a
client that leaves, a program that stops, time that is over. What is left over is cancelled and has ended when these return, also when the
caller is cancelled; nothing outlives them and no error is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Finished", "run_until", "until_first"]

T = TypeVar("T")
_Work = Coroutine[Any, Any, object]


class Finished(NamedTuple, Generic[T]):
    """Some work came to its end, with this result."""

    result: T


async def until_first(*works: _Work) -> set[_Work]:
    """Run all until one ends, cancel the others, and return what ended by itself; an error of any is raised, in a group."""
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work): work for work in works}
        ended, unfinished = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in unfinished:
            task.cancel()
    return {tasks[task] for task in ended}


async def run_until(work: Coroutine[Any, Any, T], end: _Work, *, at_end: Callable[[], None] = lambda: None) -> Finished[T] | None:
    """Run `work` to its end, or until `end` has ended: then it is cancelled and the answer is None. Of both at once, the work has ended.

    Args:
        work: What is to be done; what it raises by itself is raised here as it is.
        end: Returns when nobody wants it any more.
        at_end: Called when that comes first, in the step in which the work is cancelled.
    """
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return Finished(working.result())
        ending.result()
        at_end()
        return None
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)
