"""What the service manager is told: that the agent has started, how it stands, that it lives, that it stops.

In: `NOTIFY_SOCKET` and `WATCHDOG_USEC` as systemd sets them. Out: datagrams. Used by `agent/app.py`; where no service manager listens,
nothing is sent. The protocol is a datagram of `NAME=value` lines to a Unix socket, which needs no library.

The watchdog follows the board's loop: `passed` is called after each of its passes, so that a loop which hangs, in Python or in a call that
does not return, stops the pings and has the agent started again. A pass that failed counts as one: starting again would not make it
succeed, and would take the answers away that the workers still give.

Source: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Final

from rkfleet.clock import Clock

__all__ = ["STATUS_CHARACTERS_MAX", "Notifier"]

STATUS_CHARACTERS_MAX: Final = 200  # `systemctl status` shows one line.
PINGS_PER_PERIOD: Final = 4  # systemd advises two; a pass every 5 s then has room to be late in a period of 30 s.


class Notifier:
    """The way to the service manager of this process; several notes of one kind are one."""

    def __init__(self, clock: Clock, environ: Mapping[str, str]) -> None:
        """Take the time and the environment that systemd gave this process."""
        self._clock: Final = clock
        address = environ.get("NOTIFY_SOCKET", "")
        self._address: Final = f"\0{address[1:]}" if address.startswith("@") else address
        watchdog = environ.get("WATCHDOG_USEC", "")
        self._ping_seconds: Final = int(watchdog) / 1e6 / PINGS_PER_PERIOD if watchdog.isdecimal() else 0.0
        self._pinged_at: float | None = None
        self._said: Final[dict[str, str]] = {}

    @property
    def ping_seconds(self) -> float:
        """How often `passed` should be called at the latest; 0 where no watchdog waits for it."""
        return self._ping_seconds if self._address else 0.0

    def ready(self) -> None:
        """Say that the start is over."""
        self._say("READY", "1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING", "1")

    def status(self, sentence: str) -> None:
        """Say how the board stands, in one line."""
        self._say("STATUS", " ".join(sentence.split())[:STATUS_CHARACTERS_MAX])

    def passed(self) -> None:
        """Say that the loop came around; as often as it likes."""
        now = self._clock.monotonic()
        if self.ping_seconds and (self._pinged_at is None or now - self._pinged_at >= self._ping_seconds):
            self._pinged_at = now
            self._send("WATCHDOG=1")

    def _say(self, name: str, value: str) -> None:
        if self._said.get(name) != value:
            self._said[name] = value
            self._send(f"{name}={value}")

    def _send(self, line: str) -> None:
        if not self._address:
            return
        # A manager that does not listen any more, or that is slow for a moment, is no reason to fail.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            out.sendto(line.encode(), self._address)
