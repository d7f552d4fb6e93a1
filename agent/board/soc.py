"""Which chip this is. A machine that is no known Rockchip board is a CPU board.

Called by `agent/board/facts.py`, `telemetry.py` and the helper `agent/clocks.py`, so it needs only the standard library. Sources: a device
tree's `compatible` list, whose entries end in NUL (Devicetree Specification 0.4, 2.3.1); NPU cores from the RK3588 and RK3576 datasheets;
RK3583 is an RK3588S with two working NPU cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["CPU", "Soc", "observe_soc"]


class Soc(NamedTuple):
    """A chip.

    Attributes:
        name: As variants spell it: what is built for rk3588 runs on the rk3588s too.
        npu_cores: NPU cores of a whole chip.
        model: The chip itself, for people: rk3588s; empty for a CPU board.
        npu_device: Name of the NPU's platform device.
        memory_bus_bits: Width of the memory bus where every channel has its chip.
    """

    name: str
    npu_cores: int
    model: str = ""
    npu_device: str = ""
    memory_bus_bits: int = 0


CPU: Final = Soc("cpu", 0)


def _rk3588(model: str, npu_cores: int = 3) -> Soc:
    return Soc("rk3588", npu_cores, model, "fdab0000.npu", 64)


_ROCKCHIP: Final = {
    "rockchip,rk3588": _rk3588("rk3588"),
    "rockchip,rk3588s": _rk3588("rk3588s"),
    "rockchip,rk3583": _rk3588("rk3583", 2),
    "rockchip,rk3576": Soc("rk3576", 2, "rk3576", "27700000.npu", 32),
}


def observe_soc(root: Path) -> Soc:
    """Return the chip that the device tree below `root` names, else the CPU board's."""
    try:
        compatible = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", "replace").split("\x00")
    except OSError:
        return CPU
    return next((_ROCKCHIP[entry] for entry in compatible if entry in _ROCKCHIP), CPU)
