"""Everything that the agent looks at on the machine, behind one seam.

Made by `agent/parts.py`, called by `agent/loop.py` each time it looks around and by the session for every Hello. A board that does not
exist has sensors of its own (`simulation/boards/machine.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from agent.board import facts, kernel, memory, storage
from rkfleet.kinds.board import Runtime
from rkfleet.report import BoardFacts

__all__ = ["LOOK_SECONDS", "MachineSensors", "Sensors"]

# Memory, storage, clocks, heat and what other programs do to them change without anybody telling, and people watch them on a dashboard at
# this pace; a look costs about a millisecond.
LOOK_SECONDS: Final = 5.0


class Sensors(Protocol):
    """What can be asked about the machine. The figures are those of the moment, except where it says otherwise."""

    def facts(self, cached_bytes: int) -> BoardFacts:
        """Return the facts; `cached_bytes` is what artifacts take already.

        Raises:
            OSError: The machine does not tell.
        """
        ...

    def memory(self) -> memory.Memory:
        """Return the machine's memory.

        Raises:
            OSError: The machine does not tell.
        """
        ...

    def storage(self) -> storage.Storage:
        """Return the data directory's file system.

        Raises:
            OSError: The directory is gone.
        """
        ...

    def machine_id(self) -> str:
        """Return what tells this machine from every other, the same for its whole life; empty if nothing does."""
        ...

    def boot_id(self) -> str:
        """Return what changes with every boot, and only then; empty if nothing does."""
        ...

    def cores(self) -> int:
        """Return the CPU cores that the agent may use; does not change while it runs."""
        ...


class MachineSensors:
    """The machine that the agent runs on."""

    def __init__(self, root: Path, data_dir: Path, overrides: facts.Overrides, runtimes: tuple[Runtime, ...]) -> None:
        """Take the file system root to read from, the data directory, what the operator says instead, and what can be started."""
        self._root: Final = root
        self._data_dir: Final = data_dir
        self._overrides: Final = overrides
        self._runtimes: Final = runtimes

    def facts(self, cached_bytes: int) -> BoardFacts:
        """Read them."""
        return facts.observe_facts(self._root, self._data_dir, cached_bytes, self._overrides, self._runtimes)

    def memory(self) -> memory.Memory:
        """Read it."""
        return memory.observe_memory(self._root)

    def storage(self) -> storage.Storage:
        """Ask the file system."""
        return storage.observe_storage(self._data_dir)

    def machine_id(self) -> str:
        """Read it."""
        return kernel.observe_machine_id(self._root)

    def boot_id(self) -> str:
        """Read it."""
        return kernel.observe_boot_id(self._root)

    def cores(self) -> int:
        """Ask the scheduler, which knows about containers and `taskset`."""
        return len(os.sched_getaffinity(0))
