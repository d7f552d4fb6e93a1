"""Memory of the machine: how much there is, how much is free, and whether that is too little.

Called by `agent/board/facts.py` and the loop. Sources: Linux `Documentation/filesystems/proc.rst` (MemTotal, MemAvailable).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Memory", "observe_memory", "under_pressure"]

# Below this share of the total the kernel starts to drop the model's own pages and tokens slow down before anything is killed.
LOW_SHARE: Final = 0.05
# It must rise above this share again, so that a figure at the border does not make the condition flap.
RECOVERED_SHARE: Final = 0.08


class Memory(msgspec.Struct, frozen=True):
    """Bytes of memory that the machine has, and that programs could still get without swapping."""

    total_bytes: int
    available_bytes: int


def observe_memory(root: Path) -> Memory:
    """Read `/proc/meminfo` below `root`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It lacks MemTotal or MemAvailable.
    """
    fields: dict[str, int] = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in {"MemTotal", "MemAvailable"}:
            fields[name] = int(rest.split()[0]) * 1024
    if len(fields) != 2:
        raise ValueError(f"{root / 'proc/meminfo'} has no MemTotal or no MemAvailable")
    return Memory(fields["MemTotal"], fields["MemAvailable"])


def under_pressure(memory: Memory, before: bool) -> bool:
    """Return whether the machine is short of memory, given whether it was `before`."""
    return memory.available_bytes < memory.total_bytes * (RECOVERED_SHARE if before else LOW_SHARE)
