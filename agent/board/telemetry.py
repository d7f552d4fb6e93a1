"""The board looked at: one `BoardSnapshot` from everything that this package reads.

In: the file system root. Out: the snapshot. `Telemetry.observe` is what the agent reads every five seconds, so it is cheap and holds only
what moves; `observe_board` is the doctor's, once, and holds all of it. Nothing here raises for what a file says or does not say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from agent.board import block, clients, cpus, frequencies, kernel, libraries, memory, npu, soc, thermal
from agent.board.readings import read_text
from agent.board.snapshot import BoardSnapshot

__all__ = ["Telemetry", "observe_board", "observe_memory_bus"]


class Telemetry:
    """What moves on a board, read again and again.

    Args:
        root: File system root.
        agent_pid: Process whose children are no strangers to the NPU.
        account: For whom the NPU must open; None for this process.
    """

    def __init__(self, root: Path, *, agent_pid: int = 0, account: npu.Account | None = None) -> None:
        self._root: Final = root
        self._account: Final = account
        self._soc: Final = soc.observe_soc(root)
        self._scan: Final = clients.ClientScan(root, agent_pid)

    def observe(self, *, links_max: int | None = clients.LINKS_PER_STEP) -> BoardSnapshot:
        """Read it; of other processes' files only `links_max`, the rest in later calls (None: all of them, now)."""
        root = self._root
        seen = BoardSnapshot(
            soc=self._soc,
            frequencies=frequencies.observe_frequencies(root),
            zones=thermal.observe_zones(root),
            cooling=thermal.observe_cooling(root),
        )
        if not self._soc.npu_cores:
            return seen
        nodes = npu.observe_nodes(root, self._account)
        if nodes:
            self._scan.step({node.path for node in nodes}, links_max)
        load, problem = npu.observe_load(root)
        return msgspec.structs.replace(
            seen,
            driver=npu.observe_driver(root),
            nodes=nodes,
            legacy_symlink=npu.observe_legacy_symlink(root),
            load=load,
            load_problem=problem,
            clients=self._scan.clients if nodes else None,
            hidden_processes=self._scan.hidden,
        )


def observe_board(root: Path, data_dir: Path, *, account: npu.Account | None = None, runtime_library: Path | None = None) -> BoardSnapshot:
    """Return everything that can be seen of a board.

    Args:
        root: File system root.
        data_dir: Directory whose disk matters.
        account: For whom the NPU must open; None for this process.
        runtime_library: The vendor's library, if it lies where nobody would look.
    """
    moving = Telemetry(root, account=account).observe(links_max=None)
    if moving.nodes:
        moving = msgspec.structs.replace(moving, nodes=npu.observe_nodes(root, account, opened=True))
    try:
        found: memory.Memory | None = memory.observe_memory(root)
    except (OSError, ValueError, IndexError):
        found = None
    return msgspec.structs.replace(
        moving,
        kernel=kernel.observe_kernel(root),
        iommu=npu.observe_iommu(root, moving.soc),
        memory_total_bytes=found.total_bytes if found else None,
        memory_available_bytes=found.available_bytes if found else None,
        memory_bus_bits=observe_memory_bus(root),
        disk=block.observe_disk(root, data_dir),
        masks=cpus.observe_masks(root),
        libraries=libraries.observe_libraries(root, runtime_library),
    )


def observe_memory_bus(root: Path) -> int | None:
    """Return the width of the memory bus, in bits: the sum over its channels.

    Source: drivers/devfreq/rockchip_dmc_dbg.c of the vendor's kernel (`/proc/dmcdbg/dmcinfo`, `Bus Width:  16 bit` for each channel), where
    it is built in. Few kernels have it; nothing else tells.
    """
    widths = [
        int(words[2])
        for line in (read_text(root / "proc/dmcdbg/dmcinfo") or "").splitlines()
        if (words := line.split())[:2] == ["Bus", "Width:"] and len(words) > 2 and words[2].isascii() and words[2].isdecimal()
    ]
    return sum(widths) or None
