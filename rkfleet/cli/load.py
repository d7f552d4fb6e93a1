"""A steady crowd of clients: keeps a number of requests in flight and remembers how each ended. The demo rolls out under it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from rkfleet.errors import FleetError

if TYPE_CHECKING:
    import httpx2

    from rkfleet.cli.chat import Answer
    from rkfleet.clock import Clock

__all__ = ["Crowd", "crowd"]

FAILURES_KEPT_MAX: Final = 10  # One is enough to fail; a few tell what kind of failure it is.


class Crowd:
    """What the clients saw so far."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.answers: Final[list[Answer]] = []
        self.failures: Final[list[str]] = []
        self.failed = 0

    def fail(self, why: str) -> None:
        """Remember a failure."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT_MAX:
            self.failures.append(why)


@contextlib.asynccontextmanager
async def crowd(
    http: httpx2.AsyncClient, url: str, body_of: Callable[[int], dict[str, Any]], clients: int, clock: Clock
) -> AsyncIterator[Crowd]:
    """Keep `clients` requests in flight for as long as the block runs; at its end each finishes the one it has.

    `body_of` makes the body of request number n, so that no two prompts are the same.
    """
    from rkfleet.cli.chat import ask

    seen = Crowd()
    stop = asyncio.Event()
    numbers = iter(range(1 << 30))

    async def client() -> None:
        while not stop.is_set():
            seen.in_flight += 1
            try:
                answer = await ask(http, url, body_of(next(numbers)), clock)
                if answer.output_tokens:
                    seen.answers.append(answer)
                else:
                    seen.fail("an answer had no tokens")
            except FleetError as error:
                seen.fail(error.message)
                return  # a client that is refused would only repeat it as fast as it can
            finally:
                seen.in_flight -= 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
        try:
            yield seen
        finally:
            stop.set()
