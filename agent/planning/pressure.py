"""The board's own conditions: memory and disk. Pure.

In: what was seen of memory and storage, and sentences of whoever found the disk full. Out: MemoryPressure and DiskPressure, always both,
so that a condition goes away by being said to be False.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.quantity import format_bytes

__all__ = ["DISK_FLOOR_BYTES", "disk_pressure", "memory_pressure"]

# Fetches leave 64 MiB free by themselves; less than half of that means that somebody else fills the disk.
DISK_FLOOR_BYTES: Final = 32 << 20


def memory_pressure(*, low: bool, total_bytes: int) -> Condition:
    """Return MemoryPressure; `low` is `agent.board.memory.under_pressure`."""
    if not low:
        return condition(conditions.MEMORY_PRESSURE, "False", conditions.SUFFICIENT)
    why = f"less than a twentieth of {format_bytes(total_bytes)} of memory is available, so models may be slowed down or killed"
    return condition(conditions.MEMORY_PRESSURE, "True", conditions.LOW_MEMORY, explain(why, "rkfleet get replicas -A"))


def disk_pressure(*, free_bytes: int, problems: Sequence[str]) -> Condition:
    """Return DiskPressure.

    Args:
        free_bytes: Free bytes of the file system of the data directory.
        problems: Sentences of those who could not write; the first is shown.
    """
    if problems:
        return condition(conditions.DISK_PRESSURE, "True", conditions.DISK_FULL, explain(problems[0], "df -h, on the board"))
    if free_bytes < DISK_FLOOR_BYTES:
        why = f"less than {format_bytes(DISK_FLOOR_BYTES)} are free on the disk of the data directory"
        return condition(conditions.DISK_PRESSURE, "True", conditions.DISK_FULL, explain(why, "df -h, on the board"))
    return condition(conditions.DISK_PRESSURE, "False", conditions.SUFFICIENT)
