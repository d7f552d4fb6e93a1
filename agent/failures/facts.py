"""Known failures that no line tells: recognised from plain values. Pure, reads nothing.

Each function takes what somebody measured or read and returns a `Failure`, or None if all is well or the value is unknown (empty, 0 or
None): an unknown is never reported as a fault. Called by what looks at the board (clocks, driver, load, speeds) and by
`agent/failures/lines.py`, where a line names a version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from agent.failures.modes import DRIVER_WANTED, Failure, failure

__all__ = [
    "clock_below_request", "cpu_clock_low", "driver_too_old", "link_to_render_node", "mainline_driver", "model_not_unloaded",
    "npu_load_unknown", "npu_shared", "run_lost", "speed_below_table", "tuning_without_effect",
]  # fmt: skip

# Boards differ by a tenth from the vendor's table; a slow governor costs half. Source: the speeds in rknn-llm issues 27 and 29.
SLOW_SHARE: Final = 0.7
# Below this share of its highest clock a fast core under load is held back by its governor (408 of 2400 MHz), not by heat (1200 and more).
LOW_CLOCK_SHARE: Final = 0.4
# Clocks are set in steps of 100 MHz or less, and read back rounded.
CLOCK_SHARE: Final = 0.97
# Above this a chip that runs slower than asked does so for its heat. Source: trip points of the vendor's device trees, 85 C passive.
HOT_CELSIUS: Final = 80.0
# A process that should be gone and holds less than this is on its way out, or something else.
RESIDENT_BYTES_MIN: Final = 64 << 20

_VERSION: Final = re.compile(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


def driver_too_old(version: str, wanted: str = DRIVER_WANTED) -> Failure | None:
    """Return failure 1 for an RKNPU driver older than `wanted`; None for a newer one, or a version that is no version."""
    have, need = _VERSION.match(version), _VERSION.match(wanted)
    if not have or not need or _numbers(have) >= _numbers(need):
        return None
    return failure(1, f"NPU driver {version} is older than {wanted}, which the runtime needs")


def mainline_driver(family: str) -> Failure | None:
    """Return failure 5 if the NPU belongs to the mainline driver."""
    if family != "rocket":
        return None
    return failure(5, "the NPU belongs to the mainline driver rocket, which the vendor's runtime cannot use")


def link_to_render_node(target: str) -> Failure | None:
    """Return failure 6 if `/dev/rknpu` is a link; `target` is where it leads, empty if it is none."""
    return failure(6, f"/dev/rknpu is a link to {target}") if target else None


def npu_shared(users: Sequence[str]) -> Failure | None:
    """Return failure 14 if programs other than the agent's workers have the NPU open; `users` names them, for example `frigate (812)`."""
    if not users:
        return None
    named = ", ".join(users[:8]) + (f" and {len(users) - 8} more" if len(users) > 8 else "")
    return failure(14, f"{named} {'uses' if len(users) == 1 else 'use'} the NPU besides the agent's workers")


def run_lost(runtime_version: str) -> Failure | None:
    """Return failure 16 for a run that never ended on the runtime release that loses asynchronous runs."""
    if not runtime_version.startswith("1.2.1"):
        return None
    return failure(16, f"a run on runtime {runtime_version} never ended; this release loses runs that were started asynchronously")


def cpu_clock_low(current_hertz: int, highest_hertz: int, governor: str) -> Failure | None:
    """Return failure 18 if a fast core runs far below its highest clock while the model works.

    Args:
        current_hertz: Clock of the fastest cluster under load; 0 for unknown.
        highest_hertz: Highest clock it offers; 0 for unknown.
        governor: Name of its governor.
    """
    if not current_hertz or not highest_hertz or current_hertz >= highest_hertz * LOW_CLOCK_SHARE:
        return None
    why = f"governor {governor or 'unknown'} keeps the fast CPU cores at {_mega(current_hertz)} of {_mega(highest_hertz)} MHz under load"
    return failure(18, why)


def speed_below_table(measured: float, expected: float, cause: Failure | None = None) -> Failure | None:
    """Return failure 18 for a decode speed far below the table's, or the `cause` that is already known, with both speeds.

    Args:
        measured: Tokens per second of this board; 0 for unknown.
        expected: Tokens per second of the benchmark table for the same chip, dtype and length; 0 for none.
        cause: What was found about clocks or heat.
    """
    if measured <= 0 or expected <= 0 or measured >= expected * SLOW_SHARE:
        return None
    speeds = f"{measured:.1f} tokens/s, {100 * measured / expected:.0f}% of the table's {expected:.1f}"
    if cause is not None:
        return failure(cause.number, f"{speeds}: {cause.message}", cause.remedy)
    return failure(18, f"{speeds}, with no fault of clocks or heat found")


def clock_below_request(name: str, current_hertz: int, requested_hertz: int, celsius: float | None) -> Failure | None:
    """Return failure 19 if a hot chip runs a clock below what was asked, 22 if a cool one does, None if it runs as asked.

    Args:
        name: Whose clock, for example `NPU`.
        current_hertz: What is read back; 0 for unknown.
        requested_hertz: What was set, or the governor's highest under load; 0 for unknown.
        celsius: Highest temperature of the chip; None for unknown.
    """
    if not current_hertz or not requested_hertz or current_hertz >= requested_hertz * CLOCK_SHARE:
        return None
    clocks = f"{name} runs at {_mega(current_hertz)} instead of {_mega(requested_hertz)} MHz"
    if celsius is not None and celsius >= HOT_CELSIUS:
        return failure(19, f"{clocks}, because the chip is at {celsius:.0f} C")
    return tuning_without_effect(name, str(requested_hertz), str(current_hertz))


def tuning_without_effect(node: str, written: str, read_back: str) -> Failure | None:
    """Return failure 22 if a setting reads back as something else; `read_back` is empty if the node does not exist."""
    if written == read_back:
        return None
    now = f"it reads {read_back}" if read_back else "there is no such node"
    return failure(22, f"{node} was set to {written}, and {now}")


def npu_load_unknown(error: str) -> Failure | None:
    """Return failure 23 if the NPU's load cannot be read; `error` is the system's word for why, for example `Permission denied`."""
    if not error:
        return None
    if "ermission" in error:
        return failure(23, f"the NPU's load is unknown: {error}", "on the board: mount -o remount,mode=755 /sys/kernel/debug")
    return failure(23, f"the NPU's load is unknown: {error}")


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


def _numbers(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in match.groups())


def _mega(hertz: int) -> int:
    return round(hertz / 1_000_000)
