"""The board's certificates: waiting for the first, keeping them new, and trusting those of the fleet.

In: how the board gets its identity, the time, how long there has been no session. Out: the `Identity`, and what renews it. Called by
`agent/app.py` for a board of a fleet; when a renewal is due is decided in `rkfleet/renewal.py`.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.metrics import AgentMetrics
from agent.notify import Notifier
from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition
from rkfleet.fleet_time import FleetTime
from rkfleet.identity import Identity
from rkfleet.ops import Listener
from rkfleet.renewal import Renew, Renewal, Renewing
from rkfleet.tls import ignore_dates

__all__ = ["fleet_trust", "renewing", "wait_for_identity"]


async def wait_for_identity(identity: Callable[[], Awaitable[Identity]], name: str, notifier: Notifier, clock: Clock) -> Identity:
    """Return the identity of board `name` as soon as there is one.

    Raises:
        FailedPrecondition: It is that of another board.
        PermissionDenied: The controller refuses to enrol this board.
    """
    async with asyncio.TaskGroup() as tasks:
        alive = tasks.create_task(_stay_alive(notifier, clock))
        found = await identity()
        alive.cancel()
    if found.name != name:
        raise FailedPrecondition(f"{found.directory} is the identity of board {found.name}, not of {name}; use another --data-dir")
    return found


async def _stay_alive(notifier: Notifier, clock: Clock) -> None:
    """Feed the watchdog while there is no loop yet whose passes do: a controller may be away for days."""
    notifier.status("waiting until a controller lets this board join its fleet")
    while notifier.ping_seconds:
        notifier.passed()
        await clock.sleep(notifier.ping_seconds)


def fleet_trust(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts servers of the fleet and nobody else.

    Raises:
        FailedPrecondition: The file cannot be used.
    """
    try:
        return ignore_dates(ssl.create_default_context(cafile=str(ca_file)))
    except OSError as error:
        raise FailedPrecondition(f"identity file {ca_file} cannot be used: {error}") from error


def renewing(
    identity: Identity,
    machine_id: str,
    *,
    listener: Listener,
    session_lost_seconds: Callable[[], float],
    time: FleetTime,
    clock: Clock,
    jitter: random.Random,
    metrics: AgentMetrics,
    renew: Renew,
) -> Renewing:
    """Return what keeps the certificates new; the session takes them with its next connection, the listener at once."""

    def renewed(found: Identity) -> None:
        listener.reload()
        metrics.show_certificate(found.expires_timestamp)

    metrics.show_certificate(identity.expires_timestamp)
    return Renewing(
        identity,
        Renewal(role="board", machine_id=machine_id),
        clock=clock,
        jitter=jitter,
        now=time.now,
        on_renewed=renewed,
        # Once the controller has told the time, dates say when a renewal is due; until then, no session may mean an ended certificate.
        lost_seconds=lambda: 0.0 if time.is_told else session_lost_seconds(),
        renew=renew,
    )
