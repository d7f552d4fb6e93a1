"""Refusing what is not served: a path that nobody has, a method that a path does not take.

In: calls. Out: errors of any dialect. Called by every API of the board.
"""

from __future__ import annotations

from agent.serving.call import Call
from rkfleet.errors import BadRequest, NotFound

__all__ = ["allow", "unknown_path"]


class _NoSuchMethod(BadRequest):
    """The path exists, the method does not."""

    http_status = 405


def allow(call: Call, *methods: str) -> None:
    """Let a call pass that uses one of these methods.

    Raises:
        BadRequest: 405, it does not.
    """
    if call.method not in methods:
        raise _NoSuchMethod(f"{call.whole_path[:256]} takes {' or '.join(methods)}, not {call.method}", code="method_not_allowed")


def unknown_path(call: Call) -> NotFound:
    """Return the error of a path that nobody has."""
    return NotFound(
        f"{call.whole_path[:256]} is not served here; see GET /v1/models, POST /v1/chat/completions and POST /api/chat", code="unknown_url"
    )
