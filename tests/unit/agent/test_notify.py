"""What the service manager is told, over real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.notify import Notifier
from tests.support.clocks import ManualClock


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        listening.setblocking(False)
        yield listening


def heard(listening: socket.socket) -> list[str]:
    lines = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines.append(listening.recv(4096).decode())
    return lines


@pytest.mark.parametrize("abstract", [True, False])
def test_each_thing_is_said_once_and_pings_follow_the_loop(tmp_path: Path, abstract: bool) -> None:
    """A loop that does not come around sends none; one that races sends four in a period."""
    address = f"@rkfleet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    clock = ManualClock()
    with manager(address) as listening:
        notifier = Notifier(clock, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
        notifier.ready()
        notifier.ready()
        notifier.status("all\nwell " + "x" * 300)
        assert heard(listening) == ["READY=1", "STATUS=all well " + "x" * 191]
        assert notifier.ping_seconds == 7.5
        for _ in range(60):
            notifier.passed()
            clock.advance(0.5)
        assert heard(listening) == ["WATCHDOG=1"] * 4
        clock.advance(60)
        assert heard(listening) == []
        notifier.stopping()
        assert heard(listening) == ["STOPPING=1"]


def test_nothing_is_said_where_nobody_listens(tmp_path: Path) -> None:
    """Neither without systemd nor after its socket has gone."""
    for environ in ({}, {"WATCHDOG_USEC": "30000000"}, {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "x"}):
        notifier = Notifier(ManualClock(), environ)
        notifier.ready()
        notifier.passed()
        assert notifier.ping_seconds == 0
