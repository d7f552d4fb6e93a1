"""The clocks of boards: the write on `Board.spec.tuning`, and the wait until the board has said what came of it.

In: an API client and names of boards. Out: whether the wish was new, and one line for each board once it stands. `board.py` calls it. The
agent of the board sets the clocks and writes the condition ClocksPinned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from rkfleet import conditions
from rkfleet.cli.following import Trouble, Wanted, following
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.conditions import advice
from rkfleet.errors import DeadlineExceeded, FailedPrecondition, NotFound
from rkfleet.kinds import Board
from rkfleet.meta import Ref

__all__ = ["wait_for_clocks", "want_clocks"]

COALESCE_SECONDS: Final = 0.25  # As in `drain.py`: changes that come together are one look.


async def want_clocks(client: ApiClient, name: str, clocks: StrEnum) -> bool:
    """Ask for the clocks of a board and return whether that is new.

    Raises:
        NotFound: There is no such board.
    """
    ref = Ref(Board.resource.name, "", name)
    stored = await client.get(ref)
    wanted = clocks.value.capitalize()
    if ((stored.get("spec") or {}).get("tuning") or {}).get("clocks", "Unmanaged") == wanted:
        return False
    await client.patch(ref, {"spec": {"tuning": {"clocks": wanted}}})
    return True


async def wait_for_clocks(
    client: ApiClient,
    clock: Clock,
    names: Sequence[str],
    clocks: StrEnum,
    timeout_seconds: float,
    *,
    say: Callable[[str, str], None],
    trouble: Trouble = lambda _error: None,
) -> None:
    """Wait until each board has its clocks as wanted, or says why it cannot.

    Args:
        client: API client.
        clock: For pauses.
        names: Boards.
        clocks: What was asked for.
        timeout_seconds: Limit; 0 waits for ever.
        say: Called with a board and a sentence once it stands.
        trouble: Called with why the API tells nothing, and with None once it does again.

    Raises:
        FailedPrecondition: A board cannot; the message says why.
        NotFound: A board is gone.
        DeadlineExceeded: A board has said nothing in time.
    """
    left, failed = list(names), []
    try:
        async with asyncio.timeout(timeout_seconds or None), following(client, (Wanted(Board),), trouble) as seen:
            while left:
                await seen.changed()
                boards = {name: board for (_, name), board in seen.all(Board).items()}
                for name in tuple(left):
                    if name not in boards:
                        raise NotFound(f"board {name!r} does not exist")
                    verdict = _verdict(boards[name], clocks.value.capitalize())
                    if verdict is not None:
                        left.remove(name)
                        good, sentence = verdict
                        say(name, sentence)
                        failed += [] if good else [name]
                await clock.sleep(COALESCE_SECONDS if left else 0)
    except TimeoutError as error:
        shown = ", ".join(left)
        raise DeadlineExceeded(f"after {timeout_seconds:g} s nothing was said of {shown}; see: rkfleet describe board {left[0]}") from error
    if failed:
        raise FailedPrecondition(f"clocks are not as wanted on {', '.join(failed)}; see: rkfleet describe board {failed[0]}")


def _verdict(board: Board, wanted: str) -> tuple[bool, str] | None:
    """Return whether the board's clocks are as wanted and a sentence; None while it has not answered this wish."""
    said = conditions.find(board.status.conditions, conditions.CLOCKS_PINNED)
    if wanted == "Unmanaged":
        if said is None or said.reason == conditions.CLOCKS_UNMANAGED:
            return True, "leaves its clocks to the kernel"
        return (False, _words(said.message)) if said.reason == conditions.CLOCKS_LEFT else None
    if said is None or said.reason in {conditions.CLOCKS_UNMANAGED, conditions.CLOCKS_LEFT}:
        return None
    if said.status == "True":
        return True, f"runs at the vendor's frequencies{f': {said.message}' if said.message else ''}"
    return False, _words(said.message)


def _words(message: str) -> str:
    why, command = advice(message)
    return f"{why}\n  try: {command}" if command else why
