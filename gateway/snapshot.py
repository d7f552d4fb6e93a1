"""The last routing table on disk, so that a gateway that starts while the controller is away routes all the same.

One file, replaced atomically. A snapshot that cannot be read is as good as none; a snapshot that cannot be written is logged and costs
nothing but the next cold start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from gateway.routing import Table

__all__ = ["Snapshot"]

_log = logging.getLogger(__name__)


class Snapshot:
    """The file that holds the last table."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def load(self) -> Table | None:
        """Return the table of the last run, or None."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Table)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("the routing snapshot cannot be read", extra={"path": str(self._path), "cause": str(error)})
            return None

    def save(self, table: Table) -> None:
        """Write the table down."""
        part = self._path.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(table))
            part.replace(self._path)
        except OSError as error:
            _log.warning("the routing snapshot cannot be written", extra={"path": str(self._path), "cause": str(error)})
