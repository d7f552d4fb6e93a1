"""What every answer that stays open has in common: its pieces, the client that leaves, and the first of several reasons to end.

In: ASGI's receive, coroutines. Out: messages, and which coroutine ended first. `watch.py` and `logs.py` stream with these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Receive

__all__ = ["body", "client_leaves", "until_first"]

_Work = Coroutine[Any, Any, object]


def body(piece: bytes, *, more: bool = True) -> Message:
    """Return a piece of a body."""
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def client_leaves(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_first(*works: _Work) -> set[_Work]:
    """Run all until one ends, cancel the others, and return what ended by itself; an error of any is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work): work for work in works}
        ended, unfinished = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in unfinished:
            task.cancel()
    return {tasks[task] for task in ended}
