"""What can be seen of a board at one moment, as one frozen value. Pure.

`telemetry.py` makes it from the file system, `diagnosis.py`, `slowness.py` and `agent/planning/npu.py` read it. None, and an absent entry,
mean *unknown* everywhere; a figure is never invented. Units: hertz, bytes, degrees Celsius, shares from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from agent.board.soc import CPU, Soc

__all__ = [
    "BoardSnapshot",
    "Client",
    "Cooling",
    "Disk",
    "Driver",
    "Frequency",
    "Libraries",
    "Node",
    "ProcessMask",
    "Zone",
]


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Driver(_Value, frozen=True, kw_only=True):
    """The kernel driver of the NPU.

    Attributes:
        family: rknpu (vendor) or rocket (mainline); empty if there is none.
        version: Of rknpu, for example 0.9.8; empty if unknown.
        source: The file that told the version.
    """

    family: Literal["", "rknpu", "rocket"] = ""
    version: str = ""
    source: str = ""


class Node(_Value, frozen=True, kw_only=True):
    """A device node through which programs reach the NPU.

    Attributes:
        state: Whether the account that was asked for can open it.
        permissions: As `ls -l` shows them, with owner and group by number.
    """

    path: str
    kind: Literal["render", "dma-heap"]
    state: Literal["usable", "missing", "forbidden", "dead"]
    permissions: str = ""


class Frequency(_Value, frozen=True, kw_only=True):
    """A clock that the kernel scales.

    Attributes:
        name: npu, gpu, dram, or the cpufreq policy: cpu0, cpu4.
        node: Directory in sysfs.
        current_hertz: Frequency now.
        governor: What chooses it.
        requested_hertz: What the governor asks for, where it asks for one frequency: userspace and performance.
        limit_hertz: Highest that the kernel allows now.
        highest_hertz: Highest that the hardware offers.
        cpus: Cores of a cpufreq policy.
    """

    name: str
    node: str
    current_hertz: int | None = None
    governor: str | None = None
    requested_hertz: int | None = None
    limit_hertz: int | None = None
    highest_hertz: int | None = None
    cpus: tuple[int, ...] = ()


class Zone(_Value, frozen=True, kw_only=True):
    """A thermal zone; `passive_celsius` is the lowest temperature at which the kernel slows something down."""

    name: str
    celsius: float
    passive_celsius: float | None = None


class Cooling(_Value, frozen=True, kw_only=True):
    """A clock that the kernel lowers against heat; state 0 means that it does not."""

    name: str
    state: int


class Disk(_Value, frozen=True, kw_only=True):
    """What holds the data directory.

    Attributes:
        kind: emmc, sd, nvme, ata (also USB), or empty if unknown.
        read_bytes_per_second: Bytes read since boot by the time that reading took; None before there were enough, in large pieces.
    """

    device: str
    kind: Literal["", "emmc", "sd", "nvme", "ata"] = ""
    read_bytes_per_second: float | None = None


class Client(_Value, frozen=True, kw_only=True):
    """A process that has the NPU open and is not one of this agent's workers."""

    pid: int
    name: str
    node: str


class ProcessMask(_Value, frozen=True, kw_only=True):
    """Cores that a process of rkfleet may run on."""

    pid: int
    name: str
    cpus: tuple[int, ...]


class Libraries(_Value, frozen=True, kw_only=True):
    """Where the vendor's runtime and the OpenMP library that it loads were found; empty for nowhere."""

    rkllm: str = ""
    openmp: str = ""


class BoardSnapshot(_Value, frozen=True, kw_only=True):
    """A board at one moment.

    Attributes:
        driver: None if sysfs itself cannot be read.
        legacy_symlink: Where `/dev/rknpu` points to; empty if it is no link.
        load_problem: Why there is no load: what debugfs said.
        load: Busy share of each NPU core in the last second.
        clients: Other users of the NPU; None if nothing was looked at.
        hidden_processes: Processes whose open files may not be read, so that they might be users too.
        iommu: Whether the NPU's addresses are translated.
        memory_bus_bits: Width of the memory bus, where the kernel tells.
        masks: Of the agent and its workers; None if nothing was looked at.
        libraries: None if nothing was looked at.
    """

    soc: Soc = CPU
    kernel: str = ""
    driver: Driver | None = None
    nodes: tuple[Node, ...] = ()
    legacy_symlink: str = ""
    load: Mapping[int, float] | None = None
    load_problem: Literal["", "missing", "forbidden", "unreadable", "garbled"] = ""
    frequencies: tuple[Frequency, ...] = ()
    zones: tuple[Zone, ...] = ()
    cooling: tuple[Cooling, ...] = ()
    clients: tuple[Client, ...] | None = None
    hidden_processes: int = 0
    iommu: bool | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_bus_bits: int | None = None
    disk: Disk | None = None
    masks: tuple[ProcessMask, ...] | None = None
    libraries: Libraries | None = None

    def frequency(self, name: str) -> Frequency | None:
        """Return the clock of this name, or None."""
        return next((one for one in self.frequencies if one.name == name), None)

    @property
    def policies(self) -> tuple[Frequency, ...]:
        """CPU clocks, slowest cores first."""
        found = [one for one in self.frequencies if one.cpus]
        return tuple(sorted(found, key=lambda one: (one.highest_hertz or 0, one.cpus)))

    @property
    def fast_cpus(self) -> frozenset[int]:
        """Cores of every policy but the slowest; empty where that is unknown or all are alike."""
        known = [one for one in self.policies if one.highest_hertz]
        slowest = min((one.highest_hertz or 0 for one in known), default=0)
        return frozenset(cpu for one in known if (one.highest_hertz or 0) > slowest for cpu in one.cpus)
