"""Time, as an argument.

Everything that needs the time takes a `Clock`; the one real clock is made in each program's `app.py`, and tests make their own.
Wall time is for people and certificates, monotonic time is for every duration. This is the only module that may call `time.time`,
`time.monotonic`, `datetime.now` or `asyncio.sleep` (ruff's banned-api keeps it so).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "format_time", "give_way", "parse_time"]


class Clock(Protocol):
    """What a clock must keep: `monotonic` never goes back, `now` is aware and in UTC."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds of monotonic time."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds."""
        await asyncio.sleep(seconds)


async def give_way() -> None:
    """Let every other task of the loop that is ready run once; long work is cut up with it. No time passes by itself."""
    await asyncio.sleep(0)


def format_time(moment: datetime) -> str:
    """Return RFC 3339 with second precision and `Z`, as Kubernetes' `metav1.Time` is written."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time with `Z` or an offset.

    Raises:
        ValueError: `text` is not such a time or has no offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no UTC offset")
    return moment.astimezone(UTC)
