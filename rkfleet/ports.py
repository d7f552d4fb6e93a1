"""Which ports the programs of one data directory listen on, chosen once and kept in `ports.json`.

A port given as 0 means any free one. It is chosen before the listener starts and stays the same over restarts, so that addresses which
clients hold go on working. Used by `rkfleet up` for its children and by the host of simulated boards for its boards.
"""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition

__all__ = ["Ports", "free_port", "port_argument", "quiet_ports"]

LOCAL_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")  # Of outgoing connections: man 7 ip.
DEFAULT_LOCAL_PORTS: Final = (32768, 60999)  # Linux's own, where it does not say.
FIRST_PORT: Final = 10240  # Below it are the ports that people and other programs choose.
LAST_PORT: Final = 65535
PORTS_MIN: Final = 1024  # Fewer would make programs that start at once choose the same.
TRIES_MAX: Final = 1000  # Each fails only where somebody listens; a machine on which so many do has a fault of its own.


class Ports:
    """The ports of one data directory."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._kept: Final[dict[str, int]] = msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}
        self._used: Final[set[int]] = set()

    def choose(self, name: str, wanted: int, host: str = "127.0.0.1") -> int:
        """Return the port of `name`: the wanted one, else the one kept from an earlier start, else any free one.

        Raises:
            FailedPrecondition: Another program listens on it.
        """
        port = wanted or self._kept.get(name) or free_port(host, self._used)
        if not _is_free(host, port):
            raise FailedPrecondition(f"port {port} of {name} on {host} is taken by another program; choose another one or 0 for any")
        self._kept[name] = port
        self._used.add(port)
        return port

    def keep_or_choose(self, name: str, host: str = "127.0.0.1") -> int:
        """Return the port kept for `name` if it is still free, else any free one: for listeners whose address others learn anew."""
        port = self._kept.get(name, 0)
        if not port or not _is_free(host, port):
            port = free_port(host, self._used)
        self._kept[name] = port
        self._used.add(port)
        return port

    def save(self) -> None:
        """Write the choices down; a kill leaves the old ones or the new ones."""
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self._kept)) + b"\n")
        part.replace(self._path)


def port_argument(text: str) -> int:
    """Read a port of a command line; 0 means any free one.

    Raises:
        argparse.ArgumentTypeError: It is not a whole number of 0 to 65535.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, 0..65535")
    return int(text)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1", taken: Collection[int] = ()) -> int:
    """Return a port that the system gives to no outgoing connection: one of those could take it before the listener starts.

    Raises:
        FailedPrecondition: Wherever it tried, somebody listens.
    """
    first, end = quiet_ports()
    for _ in range(TRIES_MAX):
        port = first + secrets.randbelow(end - first)
        if port not in taken and _is_free(host, port):
            return port
    raise FailedPrecondition(f"no port from {first} to {end - 1} of {host} was free in {TRIES_MAX} tries; name one")


def quiet_ports(ranges: Path = LOCAL_PORT_RANGE) -> tuple[int, int]:
    """Return the first port to choose from and the one after the last: below those of outgoing connections, or above if that is more."""
    try:
        low, high = (int(word) for word in ranges.read_text().split())
    except (OSError, ValueError):
        low, high = DEFAULT_LOCAL_PORTS
    below, above = (FIRST_PORT, low), (high + 1, LAST_PORT + 1)
    first, end = max(below, above, key=lambda one: one[1] - one[0])
    return (first, end) if end - first >= PORTS_MIN else (FIRST_PORT, LAST_PORT + 1)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
