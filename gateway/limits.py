"""Every limit of the gateway, with its unit and reason."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BODY_BYTES_MAX", "CONNECT_SECONDS_MAX", "FIRST_BYTE_SECONDS_MAX", "IDLE_CONNECTIONS_MAX", "IDLE_SECONDS_MAX", "OPEN_REQUESTS_MAX",
    "RETRY_AFTER_SECONDS", "TRIES_MAX",
]  # fmt: skip

TRIES_MAX: Final = 3
"""Replicas asked for one request before the first body byte: one and at most two others (contract)."""

BODY_BYTES_MAX: Final = 16 << 20
"""Request body: a prompt of the largest context is a few megabytes, images in requests some more."""

OPEN_REQUESTS_MAX: Final = 2048
"""Requests in the gateway at once; boards queue tens each, so more only costs memory."""

CONNECT_SECONDS_MAX: Final = 2.0
"""Connecting to a board on a LAN takes milliseconds; a board that is off must not cost the client more than this."""

FIRST_BYTE_SECONDS_MAX: Final = 900.0
"""Waiting for an answer's next byte. Prefill of 8k tokens takes an RK3588 four minutes; the board's own deadline is the real one."""

IDLE_SECONDS_MAX: Final = 60.0
"""Connections to boards that were not used for so long are not used again; boards close theirs after 75 s."""

IDLE_CONNECTIONS_MAX: Final = 32
"""Connections kept for one board: more than a board answers at once, and about 50 kB each."""

RETRY_AFTER_SECONDS: Final = 2
"""What clients are told when no replica is ready: a worker loads in seconds."""
