"""Which ports the programs of one data directory listen on, chosen once and kept in `ports.json`.

A port given as 0 means any free one. It is chosen before the listener starts and stays the same over restarts, so that addresses which
clients hold go on working. Used by `rkfleet up` for its children and by the host of simulated boards for its boards.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition

__all__ = ["Ports", "port_argument"]


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
        port = wanted or self._kept.get(name) or _free_port(host, self._used)
        if not _is_free(host, port):
            raise FailedPrecondition(f"port {port} of {name} on {host} is taken by another program; choose another one or 0 for any")
        self._kept[name] = port
        self._used.add(port)
        return port

    def keep_or_choose(self, name: str, host: str = "127.0.0.1") -> int:
        """Return the port kept for `name` if it is still free, else any free one: for listeners whose address others learn anew."""
        port = self._kept.get(name, 0)
        if not port or not _is_free(host, port):
            port = _free_port(host, self._used)
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


def _free_port(host: str, taken: set[int]) -> int:
    while True:
        with socket.socket(_family(host)) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
