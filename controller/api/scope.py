"""What a request turned out to be about, left in its ASGI scope by those who find out, for those who come after.

The edge counts and audits a request when it is over; a stream ends when its caller's token does. Neither knows the handler that knows.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.types import Scope

__all__ = ["IDENTITY", "LAPSES", "NOTES", "TARGET", "VERB", "note", "token_lapses"]

TARGET: Final = "rkfleet.target"
"""The `Target` of its path."""

VERB: Final = "rkfleet.verb"
"""What it does, in the words of authorization; `log` and `review` stand for what takes long and for what changes nothing."""

IDENTITY: Final = "rkfleet.identity"
"""Who asks."""

LAPSES: Final = "rkfleet.lapses"
"""A coroutine function that returns once the caller's token is good no longer."""

NOTES: Final = "rkfleet.notes"
"""Texts by key, for the audit log."""


async def token_lapses(scope: Scope) -> None:
    """Return once the caller's token is good no longer; never, where nobody asked for a token."""
    if LAPSES in scope:
        await scope[LAPSES]()
    else:
        await asyncio.Event().wait()


def note(scope: Scope, key: str, text: str) -> None:
    """Leave a fact for the audit log; never a secret."""
    notes: dict[str, Any] = scope.setdefault(NOTES, {})
    notes[key] = text
