"""The facts of this board as one value: chip, memory, storage, versions, runtimes.

In: the file system root (tests have their own), the data directory, what the configuration overrides. Out: `BoardFacts` as the report
and the session carry them. Called by the loop each time it looks around, so figures that never rest are rounded: every change of a
fact is a write on the controller.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from agent.board import kernel, memory, npu, soc, storage
from agent.board.snapshot import Driver
from rkfleet import __version__
from rkfleet.kinds.board import DriverVersion, Runtime, Versions
from rkfleet.report import BoardFacts

__all__ = ["Overrides", "observe_facts"]

# Kernel, agent and log daemon of a board need about 600 MiB; the rest is slack for the page cache.
SYSTEM_MEMORY_BYTES: Final = 1 << 30
# Logs, reports and the ledger must find room also when artifacts take all they may.
SYSTEM_STORAGE_BYTES: Final = 256 << 20
# Free space moves all the time; only steps of this size are a fact.
STORAGE_STEP_BYTES: Final = 64 << 20
MEMORY_STEP_BYTES: Final = 1 << 20


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says instead of the machine; 0 says nothing.

    Attributes:
        memory_bytes: Memory that the board reports to have.
        artifact_limit_bytes: Bytes that artifacts may take.
    """

    memory_bytes: int = 0
    artifact_limit_bytes: int = 0


def observe_facts(root: Path, directory: Path, cached_bytes: int, overrides: Overrides, runtimes: tuple[Runtime, ...]) -> BoardFacts:
    """Return the facts now.

    Args:
        root: Root of the file system that `/proc`, `/sys` and `/etc` are read from.
        directory: Data directory; its file system holds the artifacts.
        cached_bytes: Bytes of artifacts in it already, which artifacts may keep using.
        overrides: What the operator says instead.
        runtimes: Runtimes that the agent can start.

    Raises:
        OSError: The machine does not tell its memory or storage.
    """
    chip = soc.observe_soc(root)
    driver = npu.observe_driver(root) if chip.npu_cores else None
    memory_bytes = overrides.memory_bytes or memory.observe_memory(root).total_bytes
    disk = storage.observe_storage(directory)
    usable = max(0, disk.free_bytes + cached_bytes - SYSTEM_STORAGE_BYTES)
    usable -= usable % STORAGE_STEP_BYTES
    allocatable = max(0, memory_bytes - SYSTEM_MEMORY_BYTES)
    return BoardFacts(
        soc=chip.name,
        simulated=any(runtime.backend == "simulated" for runtime in runtimes),
        memory_bytes=memory_bytes,
        storage_bytes=disk.total_bytes,
        npu_cores=_cores(root, chip),
        allocatable_memory_bytes=allocatable - allocatable % MEMORY_STEP_BYTES,
        allocatable_storage_bytes=min(usable, overrides.artifact_limit_bytes or usable),
        versions=Versions(agent=__version__, kernel=kernel.observe_kernel(root), npu_driver=_version(driver)),
        runtimes=runtimes,
    )


def _version(driver: Driver | None) -> DriverVersion:
    return DriverVersion(family=driver.family, version=driver.version) if driver is not None else DriverVersion()


def _cores(root: Path, chip: soc.Soc) -> int:
    """Return the cores that work: of a binned chip the driver shows fewer than its name promises."""
    load, _ = npu.observe_load(root) if chip.npu_cores else (None, "")
    return min(chip.npu_cores, len(load)) if load else chip.npu_cores
