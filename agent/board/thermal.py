"""Temperatures, and clocks that the kernel lowers against heat.

In: the file system root. Out: `Zone` and `Cooling` values. Called by `telemetry.py`. Source: Linux
`Documentation/driver-api/thermal/sysfs-api.rst`: temperatures in thousandths of a degree, trip points by number, a cooling device's state 0
meaning that it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.board.readings import names_in, read_int, read_text
from agent.board.snapshot import Cooling, Zone

__all__ = ["observe_cooling", "observe_zones"]

_THERMAL: Final = "sys/class/thermal"
TRIPS_MAX: Final = 12  # THERMAL_MAX_TRIPS of kernels that had a limit.
# What no chip reads: a sensor that says so is broken, and its zone is unknown.
LOWEST_CELSIUS: Final = -60.0
HIGHEST_CELSIUS: Final = 200.0


def observe_zones(root: Path) -> tuple[Zone, ...]:
    """Return every zone that tells its temperature; two of one name are told apart by their number."""
    zones: dict[str, Zone] = {}
    for entry in names_in(root / _THERMAL):
        directory = root / _THERMAL / entry
        if not entry.startswith("thermal_zone") or (milli := read_int(directory / "temp")) is None:
            continue
        if LOWEST_CELSIUS <= (celsius := milli / 1000) <= HIGHEST_CELSIUS:
            name = read_text(directory / "type") or entry
            name = f"{name}-{entry.removeprefix('thermal_zone')}" if name in zones else name
            zones[name] = Zone(name=name, celsius=celsius, passive_celsius=_passive(directory))
    return tuple(zones.values())


def _passive(directory: Path) -> float | None:
    found = []
    for number in range(TRIPS_MAX):
        kind = read_text(directory / f"trip_point_{number}_type")
        if kind is None:
            break
        if kind == "passive" and (milli := read_int(directory / f"trip_point_{number}_temp")) is not None and milli > 0:
            found.append(milli / 1000)
    return min(found, default=None)


def observe_cooling(root: Path) -> tuple[Cooling, ...]:
    """Return the cooling devices that are clocks; a fan is none."""
    found = []
    for entry in names_in(root / _THERMAL):
        if entry.startswith("cooling_device"):
            name = read_text(root / _THERMAL / entry / "type") or ""
            state = read_int(root / _THERMAL / entry / "cur_state") if "freq" in name else None
            if state is not None and state >= 0:
                found.append(Cooling(name=name, state=state))
    return tuple(found)
