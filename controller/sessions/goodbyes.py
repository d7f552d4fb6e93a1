"""The Goodbyes that a controller says, each with how long the board stays away."""

from __future__ import annotations

from typing import Final

from rkfleet.errors import BadRequest, FleetError, NotFound, PermissionDenied
from rkfleet.session import Goodbye, GoodbyeReason

__all__ = ["goodbye_for", "protocol", "revoked", "shutdown", "silent", "superseded"]

REVOKED_SECONDS: Final = 60.0  # Somebody must act first; the board asks once a minute whether they did.
SUPERSEDED_SECONDS: Final = 30.0  # Two agents of one identity would take the session from each other in turns.
PROTOCOL_SECONDS: Final = 30.0  # A peer that breaks the protocol does so again; it needs an update, not a quick return.
BUSY_SECONDS: Final = 2.0  # The store could not write; it says itself when it can again.
SHUTDOWN_SECONDS: Final = 1.0  # A restart takes a second or two.
SILENT_SECONDS: Final = 1.0  # Whoever hears this is back already.


def goodbye_for(refusal: FleetError) -> Goodbye:
    """Return what a board is told whose session was not taken."""
    match refusal:
        case PermissionDenied() | NotFound():
            return revoked(refusal.message)
        case BadRequest():
            return protocol(refusal.message)
        case _:
            return Goodbye(reason=GoodbyeReason.SHUTDOWN, message=refusal.message, reconnect_after_seconds=BUSY_SECONDS)


def superseded(message: str) -> Goodbye:
    """Another stream has the session."""
    return Goodbye(reason=GoodbyeReason.SUPERSEDED, message=message, reconnect_after_seconds=SUPERSEDED_SECONDS)


def revoked(message: str) -> Goodbye:
    """The board may not be here."""
    return Goodbye(reason=GoodbyeReason.REVOKED, message=message, reconnect_after_seconds=REVOKED_SECONDS)


def protocol(message: str) -> Goodbye:
    """The board said what it may not."""
    return Goodbye(reason=GoodbyeReason.PROTOCOL, message=message, reconnect_after_seconds=PROTOCOL_SECONDS)


def silent(message: str) -> Goodbye:
    """The board said nothing for too long."""
    return Goodbye(reason=GoodbyeReason.PROTOCOL, message=message, reconnect_after_seconds=SILENT_SECONDS)


def shutdown(message: str = "the controller is stopping") -> Goodbye:
    """This end stops; the board should come again soon."""
    return Goodbye(reason=GoodbyeReason.SHUTDOWN, message=message, reconnect_after_seconds=SHUTDOWN_SECONDS)
