"""What the data directory lies on: the kind of the device, and how fast it has been.

In: the file system root and the data directory. Out: a `Disk`. Called by `telemetry.py` for the doctor: models are read from it at every
load. Sources: `proc_pid_mountinfo(5)`; Linux `Documentation/block/stat.rst` (reads, sectors of 512 bytes, milliseconds that reads took,
added up over those that ran at once, and milliseconds in which the device was busy).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from agent.board.readings import read_text
from agent.board.snapshot import Disk

__all__ = ["observe_disk"]

SECTOR_BYTES: Final = 512
# Less than this was read by boot itself, in pieces too small to tell a speed.
MEASURED_BYTES_MIN: Final = 256 << 20
# Models are read in large pieces. A device that was asked for small ones has not shown how fast it is.
REQUEST_BYTES_MIN: Final = 32 << 10
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_PARTITION: Final = re.compile(r"(mmcblk\d+|nvme\d+n\d+)(p\d+)?$|([sv]d[a-z]+)\d*$")


def observe_disk(root: Path, directory: Path) -> Disk | None:
    """Return the device of the file system of `directory`, or None if that is no block device or cannot be told."""
    source = _source(read_text(root / "proc/self/mountinfo") or "", str(directory.absolute()))
    found = _PARTITION.search(source)
    if found is None:
        return None
    device = found[1] or found[3]
    return Disk(device=f"/dev/{device}", kind=_kind(root, device), read_bytes_per_second=_speed(root, device))


def _source(mountinfo: str, path: str) -> str:
    """Return the source of the mount that holds a path: the last of those with the longest mount point."""
    best, source = -1, ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(rest) < 2:
            continue
        point = _ESCAPE.sub(lambda one: chr(int(one[1], 8)), fields[4])
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, source = len(point), rest[1]
    return source


def _kind(root: Path, device: str) -> Literal["", "emmc", "sd", "nvme", "ata"]:
    if device.startswith("nvme"):
        return "nvme"
    if device.startswith("sd"):
        return "ata"
    match read_text(root / f"sys/block/{device}/device/type"):
        case "MMC":
            return "emmc"
        case "SD":
            return "sd"
        case _:
            return ""


def _speed(root: Path, device: str) -> float | None:
    """Return bytes read by the time that it took. Both times are too long, one by reads at once, one by writes: the shorter is nearer."""
    words = (read_text(root / f"sys/block/{device}/stat") or "").split()
    if len(words) < 10 or not all(word.isascii() and word.isdecimal() and len(word) < 19 for word in words[:10]):
        return None
    requests, read_bytes, milliseconds = int(words[0]), int(words[2]) * SECTOR_BYTES, min(int(words[3]), int(words[9]))
    if read_bytes < MEASURED_BYTES_MIN or read_bytes < requests * REQUEST_BYTES_MIN or not milliseconds:
        return None
    return read_bytes / (milliseconds / 1000)
