"""Taking a board out of service and back: the writes on `Board.spec`, and the wait until nothing is left on the board.

In: an API client and names of boards. Out: what was done, as kubectl words it, and while waiting one line for each change of what is
waited for. `board.py` calls it. Moving replicas away is the controller's part: it follows `spec.unschedulable` and the drain taint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from rkfleet.cli.following import Trouble, following
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.errors import Conflict, DeadlineExceeded
from rkfleet.explanation import Explanation, explain
from rkfleet.kinds import Board
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.meta import Ref

__all__ = ["cordon", "uncordon", "wait_until_empty"]

Json = dict[str, Any]
Taints = list[Json]

TRIES_MAX: Final = 5  # A board's status changes now and then, and with it its version; five collisions in a row are no accident.
COALESCE_SECONDS: Final = 0.25  # Changes that come together, such as those of a whole rollout step, are one look.


async def cordon(client: ApiClient, name: str, *, drain: bool) -> bool:
    """Place nothing new on a board and, with `drain`, have what is there moved away; return whether that is new.

    Raises:
        NotFound: There is no such board.
        Conflict: Others change it all the time.
    """

    def wanted(taints: Taints) -> Taints:
        others = [one for one in taints if one["key"] != TAINT_DRAIN]
        return [*others, {"key": TAINT_DRAIN, "effect": "NoExecute"}] if drain else taints

    return await _edit(client, name, unschedulable=True, taints=wanted)


async def uncordon(client: ApiClient, name: str) -> bool:
    """Take a board back into service and end its drain; return whether that is new.

    Raises:
        NotFound: There is no such board.
        Conflict: Others change it all the time.
    """
    return await _edit(client, name, unschedulable=False, taints=lambda taints: [one for one in taints if one["key"] != TAINT_DRAIN])


async def _edit(client: ApiClient, name: str, *, unschedulable: bool, taints: Callable[[Taints], Taints]) -> bool:
    ref = Ref(Board.resource.name, "", name)
    for _ in range(TRIES_MAX):
        stored = await client.get(ref)
        spec = stored.get("spec") or {}
        before = list(spec.get("taints") or ())
        after = taints(before)
        if bool(spec.get("unschedulable")) == unschedulable and _keys(before) == _keys(after):
            return False
        version = stored["metadata"]["resourceVersion"]
        try:
            await client.patch(ref, {"metadata": {"resourceVersion": version}, "spec": {"unschedulable": unschedulable, "taints": after}})
        except Conflict:
            continue
        return True
    raise Conflict(f"board {name!r} was changed by others {TRIES_MAX} times in a row; try again")


def _keys(taints: Taints) -> list[tuple[str, str]]:
    return sorted((one["key"], one.get("effect", "")) for one in taints)


async def wait_until_empty(
    client: ApiClient,
    clock: Clock,
    names: Sequence[str],
    timeout_seconds: float,
    *,
    say: Callable[[str, Explanation | None], None],
    trouble: Trouble = lambda _error: None,
) -> None:
    """Wait until no Replica is on these boards and no worker is reported by them.

    Args:
        client: API client.
        clock: Tells how long conditions have lasted.
        names: Boards that were cordoned for it.
        timeout_seconds: Limit; 0 waits for ever.
        say: Called with a board and what it waits for whenever that changes, and with None once it is empty or gone.
        trouble: Called with why the API tells nothing, and with None once it does again.

    Raises:
        DeadlineExceeded: Some are not empty in time; the message says why.
    """
    told: dict[str, str] = {}
    left = list(names)
    try:
        async with asyncio.timeout(timeout_seconds or None), following(client, trouble=trouble) as seen:
            while left:
                await seen.changed()
                world = seen.world(clock)
                for name in tuple(left):
                    board = world.boards.get(name)
                    if board is None or not world.left_on(board):
                        left.remove(name)
                        say(name, None)
                        continue
                    found = explain(board, world)
                    if told.get(name) != found.sentence:
                        told[name] = found.sentence
                        say(name, found)
                await clock.sleep(COALESCE_SECONDS if left else 0)
    except TimeoutError as error:
        waits = "; ".join(f"{name!r}: {told.get(name, 'nothing is known yet')}" for name in left)
        back = f"rkfleet board uncordon {' '.join(left)}"
        raise DeadlineExceeded(f"not drained after {timeout_seconds:g} s: {waits} It stays cordoned; take it back with: {back}") from error
