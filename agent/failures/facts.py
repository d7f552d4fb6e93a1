"""Known failures of a worker that no line tells: recognised from plain values. Pure, reads nothing.

Each function takes what somebody measured or read and returns a `Failure`, or None if all is well or the value is unknown. Called by the
supervisor of workers, and by `agent/failures/lines.py` where a line names a version. What is wrong with the board itself (clocks, heat,
node, other programs) is found by `agent/board/diagnosis.py`, whose findings have the same numbers.
"""

from __future__ import annotations

from typing import Final

from agent.failures.modes import DRIVER_MIN, DRIVER_WANTED, Failure, failure

__all__ = ["driver_too_old", "mainline_driver", "model_not_unloaded", "run_lost", "version_of"]

# A process that should be gone and holds less than this is on its way out, or something else.
RESIDENT_BYTES_MIN: Final = 64 << 20


def version_of(text: str) -> tuple[int, ...] | None:
    """Return a version as numbers, or None if it is none."""
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(part.isascii() and part.isdecimal() for part in parts) else None


def driver_too_old(version: str) -> Failure | None:
    """Return failure 1 for an RKNPU driver older than DRIVER_MIN; None for a newer one, or a version that is no version."""
    have = version_of(version)
    if have is None or have >= DRIVER_MIN:
        return None
    return failure(1, f"NPU driver {version} is older than {DRIVER_WANTED}, which the runtime needs")


def mainline_driver(family: str) -> Failure | None:
    """Return failure 5 if the NPU belongs to the mainline driver."""
    if family != "rocket":
        return None
    return failure(5, "the NPU belongs to the mainline driver rocket, which the vendor's runtime cannot use")


def run_lost(runtime_version: str) -> Failure | None:
    """Return failure 16 for a run that never ended on the runtime release that loses asynchronous runs."""
    if not runtime_version.startswith("1.2.1"):
        return None
    return failure(16, f"a run on runtime {runtime_version} never ended; this release loses runs that were started asynchronously")


def model_not_unloaded(pid: int, resident_bytes: int, seconds: float, *, killed: bool = False) -> Failure | None:
    """Return failure 25 if a process that should be gone for `seconds` still holds memory.

    Args:
        pid: The process.
        resident_bytes: What it holds, or has reserved.
        seconds: Since it was asked to end.
        killed: Whether it was killed already: then it waits inside a driver, and nothing but a restart of the board ends it.
    """
    if resident_bytes < RESIDENT_BYTES_MIN:
        return None
    held = f"still holds {resident_bytes >> 20} MiB of an old model"
    if killed:
        why = f"process {pid} was killed {seconds:.0f} s ago, waits inside a driver and {held}"
        return failure(25, why, "on the board: reboot")
    return failure(25, f"process {pid} should have ended {seconds:.0f} s ago and {held}", f"on the board: kill -9 {pid}")
