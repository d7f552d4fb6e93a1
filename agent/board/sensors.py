"""Everything that the loop looks at on the machine, behind one object with the paths filled in.

Made by `agent/app.py`, called by `agent/loop.py` each time it looks around.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.board import facts, memory, storage
from rkfleet.kinds.board import Runtime
from rkfleet.report import BoardFacts

__all__ = ["Sensors"]


class Sensors:
    """The machine of one agent."""

    def __init__(self, root: Path, data_dir: Path, overrides: facts.Overrides, runtimes: tuple[Runtime, ...]) -> None:
        """Take the file system root to read from, the data directory, what the operator says instead, and what can be started."""
        self._root: Final = root
        self._data_dir: Final = data_dir
        self._overrides: Final = overrides
        self._runtimes: Final = runtimes

    def facts(self, cached_bytes: int) -> BoardFacts:
        """Return the facts now; `cached_bytes` is what artifacts take already.

        Raises:
            OSError: The machine does not tell.
        """
        return facts.observe_facts(self._root, self._data_dir, cached_bytes, self._overrides, self._runtimes)

    def memory(self) -> memory.Memory:
        """Return the machine's memory now.

        Raises:
            OSError: The machine does not tell.
        """
        return memory.observe_memory(self._root)

    def storage(self) -> storage.Storage:
        """Return the data directory's file system now.

        Raises:
            OSError: The directory is gone.
        """
        return storage.observe_storage(self._data_dir)
