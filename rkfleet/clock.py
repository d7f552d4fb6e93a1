"""Time, as an argument.

Everything that needs the time takes a `Clock`; the one real clock is made in each program's `app.py`, and tests make their own.
Wall time is for people and certificates, monotonic time is for every duration. This is the only module that may call `time.time`,
`time.monotonic`, `datetime.now` or `asyncio.sleep` (ruff's banned-api keeps it so).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Final, Protocol

__all__ = ["Clock", "SystemClock", "format_micro_time", "format_time", "give_way", "human_duration", "parse_time"]

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
_YEAR: Final = 365 * _DAY


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


def format_micro_time(moment: datetime) -> str:
    """Return a wall time as Kubernetes writes `MicroTime`: RFC 3339, UTC, six digits of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time with `Z` or an offset.

    Raises:
        ValueError: `text` is not such a time or has no offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no UTC offset")
    return moment.astimezone(UTC)


def human_duration(seconds: float) -> str:
    """Return a duration as kubectl prints ages: `42s`, `5m`, `3h12m`, `2d`, `1y30d`.

    Source: Kubernetes `apimachinery/pkg/util/duration/duration.go`.
    """
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 2 * _MINUTE:
        return f"{max(whole, 0)}s"
    if whole < 10 * _MINUTE:
        return _two(whole, _MINUTE, "m", 1, "s")
    if whole < 3 * _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 8 * _HOUR:
        return _two(whole, _HOUR, "h", _MINUTE, "m")
    if whole < 2 * _DAY:
        return f"{whole // _HOUR}h"
    if whole < 8 * _DAY:
        return _two(whole, _DAY, "d", _HOUR, "h")
    if whole < 2 * _YEAR:
        return f"{whole // _DAY}d"
    return _two(whole, _YEAR, "y", _DAY, "d") if whole < 8 * _YEAR else f"{whole // _YEAR}y"


def _two(whole: int, large: int, large_unit: str, small: int, small_unit: str) -> str:
    rest = whole % large // small
    return f"{whole // large}{large_unit}{rest}{small_unit}" if rest else f"{whole // large}{large_unit}"
