"""Clocks that the kernel scales: NPU, GPU, memory, and the CPU's policies.

In: the file system root. Out: `Frequency` values, in hertz. Called by `telemetry.py`. Sources: Linux
`Documentation/ABI/testing/sysfs-class-devfreq` (hertz) and `Documentation/admin-guide/pm/cpufreq.rst` (kilohertz); the vendor's kernel
calls the memory's node `dmc`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.board.cpus import parse_cpus
from agent.board.readings import names_in, read_int, read_text
from agent.board.snapshot import Frequency

__all__ = ["observe_frequencies"]

_DEVFREQ: Final = "sys/class/devfreq"
_CPUFREQ: Final = "sys/devices/system/cpu/cpufreq"
_KILO: Final = 1000


def observe_frequencies(root: Path) -> tuple[Frequency, ...]:
    """Return every clock that has a node, devices first."""
    devices = [_device(root, name, part) for name in names_in(root / _DEVFREQ) if (part := _part(name))]
    policies = [_policy(root, name) for name in names_in(root / _CPUFREQ) if name.startswith("policy") and name[6:].isdecimal()]
    return (*devices, *policies)


def _part(name: str) -> str:
    """Return which part of the chip a devfreq node is; empty for one that nobody asks about."""
    if name == "dmc":
        return "dram"
    words = name.partition(".")[2].partition("-")[0]
    return words if words in {"npu", "gpu"} else ""


def _device(root: Path, name: str, part: str) -> Frequency:
    node = root / _DEVFREQ / name
    governor = read_text(node / "governor")
    offered = [int(word) for word in (read_text(node / "available_frequencies") or "").split() if word.isascii() and word.isdecimal()]
    highest = max(offered, default=None)
    requested = read_int(node / "userspace/set_freq") if governor == "userspace" else highest if governor == "performance" else None
    return Frequency(
        name=part,
        node=f"/{_DEVFREQ}/{name}",
        current_hertz=_positive(read_int(node / "cur_freq")),
        governor=governor,
        requested_hertz=_positive(requested),
        limit_hertz=_positive(read_int(node / "max_freq")),
        highest_hertz=_positive(highest),
    )


def _policy(root: Path, name: str) -> Frequency:
    node = root / _CPUFREQ / name
    governor = read_text(node / "scaling_governor")
    highest = _hertz(read_int(node / "cpuinfo_max_freq"))
    requested = _hertz(read_int(node / "scaling_setspeed")) if governor == "userspace" else highest if governor == "performance" else None
    return Frequency(
        name=f"cpu{name[6:]}",
        node=f"/{_CPUFREQ}/{name}",
        current_hertz=_hertz(read_int(node / "scaling_cur_freq")),
        governor=governor,
        requested_hertz=requested,
        limit_hertz=_hertz(read_int(node / "scaling_max_freq")),
        highest_hertz=highest,
        cpus=parse_cpus(read_text(node / "related_cpus") or ""),
    )


def _hertz(kilohertz: int | None) -> int | None:
    return _positive(kilohertz * _KILO if kilohertz is not None else None)


def _positive(hertz: int | None) -> int | None:
    """Return the frequency, or None for what no clock that runs can have."""
    return hertz if hertz is not None and hertz > 0 else None
