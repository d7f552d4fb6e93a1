"""A machine that does not exist: what a simulated board tells about itself.

In: a chip and the board's data directory. Out: `agent.board.sensors.Sensors`. Made by `simulation/boards/board.py` at each boot. Nothing of
the host is in it, except the file system that the placeholders are written to: when that is full, a simulated board is as stuck as a real
one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from agent.board import storage
from agent.board.facts import SYSTEM_MEMORY_BYTES, SYSTEM_STORAGE_BYTES
from agent.board.memory import Memory
from rkfleet import __version__, conditions
from rkfleet.conditions import Condition, condition
from rkfleet.disk import SystemDisk, write_durably
from rkfleet.errors import FailedPrecondition, Unavailable
from rkfleet.kinds.board import DriverVersion, Runtime, Versions
from rkfleet.report import BoardFacts
from rkfleet.simulated import Chip

__all__ = ["SimulatedMachine", "SimulatedWatch", "ensure_machine_id"]

# What vendor images of 2024 and later run; variants that ask for a driver (>=0.9.7) are placed as on such a board.
VERSIONS: Final = Versions(agent=__version__, kernel="6.1.84", npu_driver=DriverVersion(family="rknpu", version="0.9.8"))
STORAGE_BYTES: Final = 64 << 30  # An eMMC of usual size. A fixed figure, so that the host's disk does not move a hundred facts.
CORES: Final = 8  # Four fast and four slow ones, on both chips.
SIMULATED: Final = "the hardware of this board is simulated"
_MACHINE_ID: Final = "machine-id"


class SimulatedMachine:
    """The sensors of one board; a new one is a new boot."""

    def __init__(
        self, chip: Chip, data_dir: Path, machine_id: str, runtimes: tuple[Runtime, ...], reserved_bytes: Callable[[], int]
    ) -> None:
        """Take the chip and the directory, and how to ask for the memory that loaded models take."""
        self._data_dir: Final = data_dir
        self._machine_id: Final = machine_id
        self._boot_id: Final = secrets.token_hex(16)
        self._memory_bytes: Final = chip.memory_bytes
        self._reserved_bytes: Final = reserved_bytes
        self._facts: Final = BoardFacts(
            soc=chip.soc,
            simulated=True,
            memory_bytes=chip.memory_bytes,
            storage_bytes=STORAGE_BYTES,
            npu_cores=chip.npu_cores,
            allocatable_memory_bytes=chip.memory_bytes - SYSTEM_MEMORY_BYTES,
            allocatable_storage_bytes=STORAGE_BYTES - SYSTEM_STORAGE_BYTES,
            versions=VERSIONS,
            runtimes=runtimes,
        )

    def facts(self, cached_bytes: int) -> BoardFacts:
        """Return the facts, which never change."""
        del cached_bytes
        return self._facts

    def memory(self) -> Memory:
        """Return what the chip's memory would have left: all but the system's share and what loaded models take."""
        return Memory(self._memory_bytes, max(0, self._memory_bytes - SYSTEM_MEMORY_BYTES - self._reserved_bytes()))

    def storage(self) -> storage.Storage:
        """Ask the host's file system, which the placeholders really take room on."""
        return storage.observe_storage(self._data_dir)

    def machine_id(self) -> str:
        """Return what was chosen at the board's first start."""
        return self._machine_id

    def boot_id(self) -> str:
        """Return what was chosen when this object was made."""
        return self._boot_id

    def cores(self) -> int:
        """Return the chip's cores."""
        return CORES


class SimulatedWatch:
    """The hardware of a board that has none: its NPU can be used, nothing is hot, clocks are as they are wanted; all of it simulated."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Take what to call when a condition has changed."""
        self._on_change: Final = on_change
        self._fixed = False

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Say so with every sentence."""
        clocks = condition(
            conditions.CLOCKS_PINNED,
            "True" if self._fixed else "False",
            conditions.CLOCKS_FIXED if self._fixed else conditions.CLOCKS_UNMANAGED,
            SIMULATED,
        )
        return (
            clocks,
            condition(conditions.NPU_READY, "True", conditions.NPU_USABLE, SIMULATED),
            condition(conditions.THERMAL_PRESSURE, "False", conditions.NOT_THROTTLED, SIMULATED),
        )

    def want(self, clocks: Literal["Unmanaged", "Fixed"]) -> None:
        """Have the clocks at once."""
        if self._fixed != (clocks == "Fixed"):
            self._fixed = not self._fixed
            self._on_change()

    def look(self) -> None:
        """See what is always the same."""

    async def run(self) -> None:
        """Wait to be cancelled: nothing here moves."""
        await asyncio.Event().wait()


def ensure_machine_id(data_dir: Path) -> str:
    """Return the id of this board's machine, chosen and kept in its data directory at the first start. Blocks.

    Raises:
        Unavailable: The directory cannot be written.
        FailedPrecondition: The file is spoiled.
    """
    path = data_dir / _MACHINE_ID
    try:
        if not path.exists():
            write_durably(path, f"simulated-{secrets.token_hex(16)}\n".encode(), path.with_suffix(".part"), SystemDisk())
        found = path.read_text().strip()
    except OSError as error:
        raise Unavailable(f"{path} cannot be written or read: {error.strerror}") from error
    if not found:
        raise FailedPrecondition(f"{path} is empty; delete {data_dir} and its Board, and the board joins anew")
    return found
