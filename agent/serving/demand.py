"""What requests tell the agent's loop about models that are loaded when somebody asks.

In: requests, by replica uid. Out: for `agent/loop.py`, which loads and unloads; for requests, nothing, they watch the routes. Called by
`agent/serving/desk.py`. The protocol stands here because serving is the side that needs it; `Undemanding` serves boards whose replicas are
all loaded for as long as they are assigned.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Demand", "Undemanding"]


class Demand(Protocol):
    """Who wants which model."""

    def want(self, uid: str) -> None:
        """Somebody waits for this replica's model; load it."""
        ...

    def touch(self, uid: str, keep_seconds: float | None) -> None:
        """A request of this replica ended now.

        Args:
            uid: Uid of the Replica.
            keep_seconds: How long its model should stay loaded without another request; None for the deployment's own
                `idleUnloadSeconds`, infinity for ever.
        """
        ...

    def unload(self, uid: str) -> None:
        """The client needs the model no more; unload it once nothing runs."""
        ...


class Undemanding:
    """Takes no notice; implements `Demand`."""

    def want(self, uid: str) -> None:
        """Do nothing."""

    def touch(self, uid: str, keep_seconds: float | None) -> None:
        """Do nothing."""

    def unload(self, uid: str) -> None:
        """Do nothing."""
