"""Which ports the programs of one data directory listen on, chosen once and kept in `ports.json`.

A port given as 0 means any free one. It is chosen before the listener starts and stays the same over restarts, so that addresses which
clients hold go on working. Used by `rkfleet up` for its children and by the host of simulated boards for its boards.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition

__all__ = ["Ports"]


class Ports:
    """The ports of one data directory."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._kept: Final[dict[str, int]] = msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}
        self._used: Final[set[int]] = set()

    def choose(self, name: str, wanted: int, host: str = "127.0.0.1", *, check: bool = True) -> int:
        """Return the port of `name`: the wanted one, else the one kept from an earlier start, else any free one.

        Args:
            name: Whose port it is.
            wanted: Port that it must be; 0 for any.
            host: Address that it will be bound on.
            check: Whether a port that is taken now is refused here; else whoever binds it finds out, alone and perhaps later.

        Raises:
            FailedPrecondition: Another program listens on it.
        """
        port = wanted or self._kept.get(name) or _free_port(host, self._used | set(self._kept.values()))
        if check and not _is_free(host, port):
            raise FailedPrecondition(f"port {port} of {name} on {host} is taken by another program; choose another one or 0 for any")
        self._kept[name] = port
        self._used.add(port)
        return port

    def save(self) -> None:
        """Write the choices down; a kill leaves the old ones or the new ones."""
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self._kept)) + b"\n")
        part.replace(self._path)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(host: str, taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
