"""One HTTP request of a client, as everything behind the listener knows it, whatever dialect it speaks.

In: the head of a request. Out: a `Call`. Made by `agent/serving/app.py`; read by the dialects, the desk and the proxy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from agent.serving.connection import Connection
from agent.serving.routes import Route
from rkfleet.errors import BadRequest

__all__ = ["LOCAL_TENANT", "Call", "deadline_seconds", "header"]

LOCAL_TENANT: Final = "local"  # Everybody on this machine: they could read each other's files too.
DEADLINE_SECONDS_MAX: Final = 86400.0  # A day is no deadline.


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request.

    Attributes:
        method: As sent.
        path: What is asked of the board or the replica: `/v1/models`.
        whole_path: As the client sent it.
        replica: The one replica that the path names; None for any.
        client: Where the answer goes.
        arrived_at: Monotonic second at which its head was read.
        tenant: Whose request it is; opaque.
        deadline_seconds: Seconds from arrival within which the client must see output; None for no limit.
    """

    method: str
    path: str
    whole_path: str
    replica: Route | None
    client: Connection
    arrived_at: float
    tenant: str = LOCAL_TENANT
    deadline_seconds: float | None = None

    @property
    def request_id(self) -> str:
        """The id that names this request in answers, errors, logs and at the worker."""
        return self.client.request_id


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return the first header of that name (lower case), empty for none."""
    return next((value for key, value in headers if key == name), b"")


def deadline_seconds(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return the client's deadline: `x-rkfleet-deadline-seconds`, else the read time-out that OpenAI's clients tell.

    Those send `x-stainless-read-timeout` with the seconds after which they give up on a silent connection (600 by default), which for a
    stream is the time to the first output and for anything else the time to the whole answer.
    Source: https://github.com/openai/openai-python/blob/main/src/openai/_base_client.py, `_build_headers`.

    Raises:
        BadRequest: rkfleet's own header is no positive number. What other clients send is not theirs to be refused for.
    """
    headers = tuple(headers)
    own = header(headers, b"x-rkfleet-deadline-seconds")
    seconds = _number(own or header(headers, b"x-stainless-read-timeout"))
    if own and seconds is None:
        raise BadRequest(
            f"x-rkfleet-deadline-seconds is {own[:32].decode('latin-1')!r}; a positive number of seconds is needed",
            code="invalid_value",
            param="x-rkfleet-deadline-seconds",
        )
    return seconds if seconds is not None and seconds <= DEADLINE_SECONDS_MAX else None


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
