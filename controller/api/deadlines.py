"""How long a request may take: what its client allows, and never more than a minute.

In: the `timeout` of a query. Out: a bound around the work. Watches and logs have ends of their own. Without it a client that sends its
body a byte at a time, or a database that does not answer, would hold one of the places of `limits.py` for ever. The work is cancelled at
the bound; a write that had reached the store by then may still be kept, and the answer says so.

Source: Kubernetes `apiserver/pkg/endpoints/filters/request_deadline.go`; durations are those of Go's `time.ParseDuration`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from rkfleet.errors import BadRequest, DeadlineExceeded

__all__ = ["REQUEST_SECONDS_MAX", "deadline", "seconds_of"]

REQUEST_SECONDS_MAX: Final = 60.0  # As kube-apiserver's --request-timeout: clients and proxies give up at about a minute.

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(h|ms|m|s|us|µs|ns)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern}){{1,8}}")


def seconds_of(timeout: str) -> float:
    """Return how many seconds a request may take; empty and zero ask for nothing.

    Raises:
        BadRequest: It is no duration.
    """
    if timeout in ("", "0"):
        return REQUEST_SECONDS_MAX
    if not _DURATION.fullmatch(timeout):
        raise BadRequest(f"timeout is {timeout[:40]!r}, it must be a duration such as 30s or 1m30s")
    asked = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(timeout))
    return min(asked, REQUEST_SECONDS_MAX) if asked else REQUEST_SECONDS_MAX


@asynccontextmanager
async def deadline(asked: str) -> AsyncIterator[None]:
    """Bound the block by the `timeout` that a query asked for.

    Raises:
        BadRequest: It is no duration.
        DeadlineExceeded: The time is over.
    """
    seconds = seconds_of(asked)
    bound = asyncio.timeout(seconds)
    try:
        async with bound:
            yield
    except TimeoutError as error:
        if not bound.expired():
            raise
        raise DeadlineExceeded(
            f"the server was unable to return a response within {seconds:g} s, but may still be processing the request; "
            "see what came of it before you send it again"
        ) from error
