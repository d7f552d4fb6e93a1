"""What is asked of models that need not be loaded all the time: who wants one, since when nobody has, who lets one go.

In: the serving side, for each request and for what clients say about keeping models. Out: `Use` values for the planner, and a wake-up of
the loop. Made by `agent/app.py`. It loads and unloads nothing: the loop alone does, so two requests for one model never load it twice.

    want(uid)                 a request, or a client that wants the model loaded without one: load it if it is not
    touch(uid, keep_seconds)  a request ended: count idle time from now, for so long (infinity: until told otherwise; 0: not at all; None:
                              as the deployment says)
    unload(uid)               let it go as soon as nothing runs on it; the next `want` loads it again

All three are ignored for a replica that is Eager and has no idle time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from agent.planning.residency import Use
from rkfleet.clock import Clock

__all__ = ["Demand"]


class Demand:
    """The use of every replica of the board that was ever asked for; bounded by `retain`."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        """Take monotonic time, and what wakes the loop."""
        self._clock: Final = clock
        self._wake: Final = wake
        self._uses: Final[dict[str, Use]] = {}

    def want(self, uid: str) -> None:
        """Somebody needs the model now. Wakes the loop unless that was known: most requests find the model loaded."""
        before = self._uses.get(uid)
        self._set(uid, unloaded=False)
        if before is None or before.unloaded:
            self._wake()

    def touch(self, uid: str, keep_seconds: float | None = None) -> None:
        """Count idle time from now, and keep the model that long; None keeps it as the deployment says (`idleUnloadSeconds`)."""
        self._set(uid, keep_seconds=keep_seconds)
        if keep_seconds is not None:
            self._wake()

    def unload(self, uid: str) -> None:
        """Let the model go once nothing runs on it."""
        self._set(uid, unloaded=True)
        self._wake()

    def slept(self, uid: str) -> None:
        """The loop has let it go."""
        self._set(uid, unloaded=True, slept=True)

    def uses(self) -> Mapping[str, Use]:
        """Return what is known, by replica uid."""
        return dict(self._uses)

    def retain(self, uids: AbstractSet[str]) -> None:
        """Forget every other replica."""
        for uid in self._uses.keys() - uids:
            del self._uses[uid]

    def _set(self, uid: str, **changes: object) -> None:
        now = self._clock.monotonic()
        self._uses[uid] = msgspec.structs.replace(self._uses.get(uid) or Use(last_at=now), last_at=now, **changes)
