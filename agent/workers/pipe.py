"""The control pipe between the agent and a worker process: two messages out, three back, one JSON object per line.

The agent writes one `Load` and then nothing; the worker ends when the pipe ends, whether the agent closed it, crashed or was killed.
The worker answers `Loaded` or `Failed` once and then a `Beat` whenever its runtime proved that it makes progress. Requests and tokens
never travel here, they go over the worker's HTTP listener.

Used by `agent/workers/backends.py` (the agent's end) and `agent/workers/child.py` (the worker's end). It has no I/O of its own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rkfleet.errors import Internal
from rkfleet.kinds.replica import ExitReason

__all__ = ["LINE_BYTES_MAX", "Beat", "Event", "Failed", "Load", "Loaded", "decode_event", "decode_load", "encode"]

LINE_BYTES_MAX: Final = 64 << 10  # A path and a sentence; longer lines are a mistake of ours.


class Load(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What to load and how.

    Attributes:
        backend: Name of the backend, a key of `agent.workers.child.RUNTIMES`.
        api_key: Bearer token that the listener must demand. It travels here because arguments and environment can be read by others.
    """

    backend: str
    model_path: str
    context_tokens: int
    max_concurrent: int
    threads: int
    api_key: str


class Loaded(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="loaded"):
    """The model is loaded and the listener answers at `endpoint`, an HTTP base URL on loopback."""

    endpoint: str


class Failed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="failed"):
    """The model cannot be loaded; the worker ends after this."""

    reason: ExitReason
    message: str


class Beat(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="beat"):
    """The runtime's own loop answered a question just now."""


Event = Loaded | Failed | Beat


def encode(message: Load | Event) -> bytes:
    """Return the message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode_load(line: bytes) -> Load:
    """Read what the agent wrote.

    Raises:
        Internal: The line is not a `Load`.
    """
    try:
        return msgspec.json.decode(line, type=Load)
    except msgspec.MsgspecError as error:
        raise Internal(f"control pipe: {len(line)} bytes are no load message") from error


def decode_event(line: bytes) -> Event:
    """Read what the worker wrote.

    Raises:
        Internal: The line is not an event.
    """
    try:
        event: Event = msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError as error:
        raise Internal(f"control pipe: {len(line)} bytes are no worker event") from error
    return event
