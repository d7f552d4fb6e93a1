"""The id of a client's request, the same in its answer, in errors, in logs, at the worker and on the way between.

In: the headers of a request. Out: the client's own `x-request-id` where it is fit to be written everywhere, else a new one. Called by
gateway and agent, so that both take the same ids.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["new_request_id", "request_id"]

RANDOM_BYTES: Final = 12

_FIT: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")  # Visible, without quotes and blanks: safe in headers, logs and JSON.


def new_request_id() -> str:
    """Return a new id."""
    return f"req-{secrets.token_hex(RANDOM_BYTES)}"


def request_id(headers: Iterable[tuple[bytes, bytes]], new_id: Callable[[], str] = new_request_id) -> str:
    """Return the id of a request; header names are in lower case, as ASGI has them."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode("ascii") if _FIT.fullmatch(given) else new_id()
