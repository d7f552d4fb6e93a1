"""What a request turned out to be about, left in its ASGI scope by those who find out, for those who come after.

The edge counts and audits a request when it is over; a stream ends when its caller's token does. Neither knows the handler that knows.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any, Final

from starlette.types import Scope

__all__ = ["GUESSED", "IDENTITY", "LAPSES", "NOTES", "TARGET", "VERB", "caller_of", "note", "token_lapses"]

TARGET: Final = "rkfleet.target"
"""The `Target` of its path."""

VERB: Final = "rkfleet.verb"
"""What it does, in the words of authorization; `log` and `review` stand for what takes long and for what changes nothing."""

IDENTITY: Final = "rkfleet.identity"
"""Who asks."""

LAPSES: Final = "rkfleet.lapses"
"""A coroutine function that returns once the caller's token is good no longer."""

GUESSED: Final = "rkfleet.guessed"
"""A function that is told of an `Unauthenticated` by who answers it itself; raises ResourceExhausted when the caller guesses too often."""

NOTES: Final = "rkfleet.notes"
"""Texts by key, for the audit log."""

_IPV6_NETWORK_BITS: Final = 64  # RFC 4291: what a host is given at least.


async def token_lapses(scope: Scope) -> None:
    """Return once the caller's token is good no longer; never, where nobody asked for a token."""
    if LAPSES in scope:
        await scope[LAPSES]()
    else:
        await asyncio.Event().wait()


def caller_of(scope: Scope) -> str:
    """Return the address that a request comes from; of IPv6 the network, in which one caller has as many addresses as it likes."""
    host: str = (scope.get("client") or ("",))[0]
    if ":" not in host:
        return host or "nowhere"
    network = ipaddress.ip_network((host.partition("%")[0], _IPV6_NETWORK_BITS), strict=False)
    return str(network)


def note(scope: Scope, key: str, text: str) -> None:
    """Leave a fact for the audit log; never a secret."""
    notes: dict[str, Any] = scope.setdefault(NOTES, {})
    notes[key] = text
