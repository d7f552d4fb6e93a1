"""Which chip this is. A machine that is no known Rockchip board is a CPU board.

Called by `agent/board/facts.py`. Sources: the device tree's `compatible` list, whose entries end in NUL (Devicetree Specification 0.4,
2.3.1); NPU cores from the RK3588 and RK3576 datasheets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Soc", "observe_soc"]


class Soc(msgspec.Struct, frozen=True):
    """A chip: its name as variants spell it, and its NPU cores."""

    name: str
    npu_cores: int


CPU: Final = Soc("cpu", 0)
_ROCKCHIP: Final = {"rockchip,rk3588": Soc("rk3588", 3), "rockchip,rk3588s": Soc("rk3588", 3), "rockchip,rk3576": Soc("rk3576", 2)}


def observe_soc(root: Path) -> Soc:
    """Return the chip that the device tree below `root` names, else the CPU board's."""
    try:
        compatible = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", "replace").split("\x00")
    except OSError:
        return CPU
    return next((_ROCKCHIP[entry] for entry in compatible if entry in _ROCKCHIP), CPU)
