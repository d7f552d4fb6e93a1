"""When a model is in memory: loaded at once or by the first request, unloaded when idle or when another needs the room. Pure.

In: a replica's parameters and what is known of its use (`Use`). Out: whether it should be loaded now, until when, and which idle model
makes room. Called by `agent/planning/plan.py`.

Only a replica that may be loaded later is ever unloaded: one with `serving.load: OnDemand` or an `idleUnloadSeconds`. What is declared goes
before what a client asks for: an Eager replica without idle time stays loaded whatever `keep_alive` a request carries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from rkfleet.assignment import AssignedReplica

__all__ = ["WANT_SECONDS", "Use", "asleep", "is_unloadable", "loads_on_demand", "sleeps_at", "victim"]

# A model that was asked for and cannot be loaded yet is wanted for so long after the last client left; then it waits for the next one,
# instead of pushing out what others use.
WANT_SECONDS: Final = 60.0


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the use of one replica.

    Attributes:
        last_at: Monotonic second of the last request that began or ended, or of the last word about it.
        keep_seconds: How long a client asked to keep it after that; None leaves it to `idleUnloadSeconds`.
        unloaded: It was unloaded, or somebody asked for that, and nobody has wanted it since.
        slept: It was loaded and let go before: it is known to load, so the replica counts as serving while it is loaded again.
    """

    last_at: float
    keep_seconds: float | None = None
    unloaded: bool = False
    slept: bool = False


def is_unloadable(replica: AssignedReplica) -> bool:
    """Whether the model may be out of memory while the replica serves: a request loads it."""
    return replica.serving.load == "OnDemand" or replica.serving.idle_unload_seconds > 0


def sleeps_at(replica: AssignedReplica, use: Use | None, loaded_at: float | None) -> float:
    """Return the monotonic second at which a model that nobody uses is unloaded; infinity for never.

    Args:
        replica: Whose model it is.
        use: What is known of its use; None if nothing ever asked.
        loaded_at: Since when it is loaded; None if it is not. Its idle time does not begin before.
    """
    if not is_unloadable(replica):
        return math.inf
    if loaded_at is None and not loads_on_demand(replica, use):
        return math.inf
    if use is not None and use.unloaded:
        return -math.inf
    if loaded_at is None:
        return use.last_at + WANT_SECONDS if use is not None else -math.inf
    keep = use.keep_seconds if use is not None and use.keep_seconds is not None else replica.serving.idle_unload_seconds or math.inf
    return max(use.last_at if use is not None else loaded_at, loaded_at) + keep


def asleep(replica: AssignedReplica, use: Use | None, loaded_at: float | None, *, in_flight: int, now: float) -> bool:
    """Whether the model should be out of memory now."""
    return not in_flight and now >= sleeps_at(replica, use, loaded_at)


def loads_on_demand(replica: AssignedReplica, use: Use | None) -> bool:
    """Whether a request finds the replica serving while its model is not in memory."""
    return replica.serving.load == "OnDemand" or (is_unloadable(replica) and use is not None and use.slept)


def victim(idle: Iterable[AssignedReplica], uses: Mapping[str, Use], loaded_at: Mapping[str, float | None]) -> str | None:
    """Return the uid of the model to unload for another: of those that are idle and may be unloaded the one used longest ago."""

    def used_at(replica: AssignedReplica) -> tuple[float, str]:
        use, since = uses.get(replica.uid), loaded_at.get(replica.uid)
        return max(use.last_at if use is not None else -math.inf, since if since is not None else -math.inf), replica.uid

    found = min((one for one in idle if is_unloadable(one)), key=used_at, default=None)
    return found.uid if found is not None else None
