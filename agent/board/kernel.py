"""What the kernel says about the machine: release, identity, boot.

Called by `agent/board/facts.py` and `agent/board/clock_control.py`. Sources: Linux
`Documentation/admin-guide/sysctl/kernel.rst` (random/boot_id), `machine-id(5)`.
"""

from __future__ import annotations

from pathlib import Path

from agent.board.readings import read_text

__all__ = ["observe_boot_id", "observe_kernel", "observe_machine_id"]


def observe_kernel(root: Path) -> str:
    """Return the kernel's release, for example `6.1.84`; empty if it cannot be read."""
    return read_text(root / "proc/sys/kernel/osrelease") or ""


def observe_boot_id(root: Path) -> str:
    """Return the id that changes with every boot; empty if it cannot be read."""
    return read_text(root / "proc/sys/kernel/random/boot_id") or ""


def observe_machine_id(root: Path) -> str:
    """Return what tells this machine from every other; empty if nothing does.

    The chip's serial number comes before the machine id of the installation, because cards are cloned and chips are not.
    """
    places = ("proc/device-tree/serial-number", "etc/machine-id", "sys/class/dmi/id/product_uuid")
    return next((text for place in places if (text := read_text(root / place))), "")
