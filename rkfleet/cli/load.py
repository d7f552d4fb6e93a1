"""A steady crowd of clients: keeps requests in flight and remembers how each ended. The demo rolls out, and loses a board, under it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from rkfleet.errors import FleetError

if TYPE_CHECKING:
    import httpx2

    from rkfleet.cli.chat import Answer
    from rkfleet.clock import Clock

__all__ = ["Crowd", "crowd"]

Outcome = Literal["answered", "refused", "broken"]

FAILURES_KEPT_MAX: Final = 10  # One is enough to fail; a few tell what kind of failure it is.
AGAIN_SECONDS: Final = 0.1  # Before a client that insists asks again: the shortest pause that does not make an outage louder.


class Crowd:
    """What the clients saw so far.

    Attributes:
        answers: Whole answers.
        failed: Requests that had none.
        broken: Those of them whose answer had begun.
        refused_in_a_row: The most refusals (5xx before the first byte) that one client met one after the other.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.answers: Final[list[Answer]] = []
        self.failures: Final[list[str]] = []
        self.failed = 0
        self.broken = 0
        self.refused_in_a_row = 0

    def fail(self, why: str) -> None:
        """Remember a failure."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT_MAX:
            self.failures.append(why)


@contextlib.asynccontextmanager
async def crowd(
    http: httpx2.AsyncClient,
    url: str,
    body_of: Callable[[int], dict[str, Any]],
    clients: int,
    clock: Clock,
    *,
    insist: bool = False,
    on_token: Callable[[str], None] = lambda _board: None,
) -> AsyncIterator[Crowd]:
    """Keep `clients` requests in flight for as long as the block runs; at its end each finishes the one it has.

    Args:
        http: Client to ask with.
        url: Base URL of the gateway.
        body_of: Makes the body of request number n, so that no two prompts are the same.
        clients: How many ask at the same time.
        clock: Time.
        insist: Whether a client that is refused asks again; without it, it gives up.
        on_token: Given the name of the board with every piece of an answer.
    """
    from rkfleet.cli.chat import ask

    seen = Crowd()
    stop = asyncio.Event()
    numbers = iter(range(1 << 30))

    async def request() -> Outcome:
        seen.in_flight += 1
        try:
            answer = await ask(http, url, body_of(next(numbers)), clock, on_token=on_token)
        except FleetError as error:
            seen.fail(error.message)
            return "broken" if error.details.get("status") == 200 else "refused"
        finally:
            seen.in_flight -= 1
        if not answer.output_tokens:
            seen.fail("an answer had no tokens")
            return "broken"
        seen.answers.append(answer)
        return "answered"

    async def client() -> None:
        refused = 0
        while not stop.is_set():
            outcome = await request()
            seen.broken += outcome == "broken"
            refused = refused + 1 if outcome == "refused" else 0
            seen.refused_in_a_row = max(seen.refused_in_a_row, refused)
            if outcome != "answered":
                if not insist:
                    return  # a client that is refused would only repeat it as fast as it can
                await clock.sleep(AGAIN_SECONDS)

    failure: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
        try:
            yield seen
        except Exception as error:  # noqa: BLE001 (kept out of the task group, which would wrap it, and raised below)
            failure = error
        finally:
            stop.set()
    if failure is not None:
        raise failure
