"""What the kernel says about the machine: release, identity, boot.

Called by `agent/board/facts.py` and `agent/app.py`. Sources: Linux `Documentation/admin-guide/sysctl/kernel.rst` (random/boot_id),
`machine-id(5)`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["observe_boot_id", "observe_kernel", "observe_machine_id"]


def observe_kernel(root: Path) -> str:
    """Return the kernel's release, for example `6.1.84`; empty if it cannot be read."""
    return _read(root / "proc/sys/kernel/osrelease")


def observe_boot_id(root: Path) -> str:
    """Return the id that changes with every boot; empty if it cannot be read."""
    return _read(root / "proc/sys/kernel/random/boot_id")


def observe_machine_id(root: Path) -> str:
    """Return what tells this machine from every other; empty if nothing does.

    The chip's serial number comes before the machine id of the installation, because cards are cloned and chips are not.
    """
    return _read(root / "proc/device-tree/serial-number") or _read(root / "etc/machine-id") or _read(root / "sys/class/dmi/id/product_uuid")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\x00 \n\t")
    except OSError:
        return ""
