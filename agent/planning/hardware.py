"""The board's own conditions about its hardware: NPUReady, ThermalPressure, ClocksPinned. Pure.

In: a snapshot of the board, and how its clocks stand to their profile. Out: conditions, or None where a condition says nothing about this
board: one without an NPU has none of them, until somebody asks for its clocks. The sentences are those of `agent/board/diagnosis.py`, so
that doctor and conditions never differ. Figures that move all the time stay out of messages: each change of a message is a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from agent.board import diagnosis
from agent.board.diagnosis import DRIVER_SMALL, Finding, diagnose, heat, is_throttled
from agent.board.profile import Item
from agent.board.snapshot import BoardSnapshot
from agent.failures.facts import version_of
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain

__all__ = ["Clocks", "clocks_pinned", "is_settled", "npu_ready", "thermal_pressure"]

Clocks = Literal["Unmanaged", "Fixed"]

# Throttling starts and ends with every request; the condition stays until the board is this much cooler than where the kernel acts.
COOLER_CELSIUS: Final = 5.0
HELPER_COMMAND: Final = "sudo systemctl enable --now rkfleet-clocks, on the board"
ITEMS_NAMED_MAX: Final = 3
_SETTLED: Final = frozenset({"pinned", "highest"})


# ---- NPUReady ------------------------------------------------------------------------------------------------------------------------


def npu_ready(seen: BoardSnapshot, runtime_problem: str = "") -> Condition | None:
    """Return whether models can run on the NPU, and else the first cause; None without an NPU.

    Args:
        seen: The board.
        runtime_problem: Why the vendor's library cannot be used, in one sentence; empty if it can, or is not looked at.
    """
    if not seen.soc.npu_cores:
        return None
    found = {one.check: one for one in diagnose(seen, diagnosis.NPU_CHECKS)}
    driver = found["npu-driver"]
    if driver.verdict == "unknown":
        return _condition(conditions.NPU_READY, "Unknown", conditions.DRIVER_UNKNOWN, driver)
    if driver.verdict == "bad" and (reason := _driver_reason(seen)) != conditions.SMALL_MODELS_ONLY:
        return _condition(conditions.NPU_READY, "False", reason, driver)
    for check, reason in (("npu-node", _node_reason(seen)), ("npu-clients", conditions.OTHER_NPU_CLIENT)):
        if (one := found.get(check)) is not None and one.verdict == "bad":
            return _condition(conditions.NPU_READY, "False", reason, one)
    if runtime_problem:
        why = explain(runtime_problem, "rkfleet doctor, on the board")
        return condition(conditions.NPU_READY, "False", conditions.RUNTIME_LIBRARY_UNKNOWN, why)
    if driver.verdict == "bad":
        return _condition(conditions.NPU_READY, "True", conditions.SMALL_MODELS_ONLY, driver)
    return condition(conditions.NPU_READY, "True", conditions.NPU_USABLE)


def _driver_reason(seen: BoardSnapshot) -> str:
    driver = seen.driver
    if driver is None or not driver.family:
        return conditions.DRIVER_MISSING
    if driver.family == "rocket":
        return conditions.MAINLINE_DRIVER
    version = version_of(driver.version)
    return conditions.SMALL_MODELS_ONLY if version is not None and version >= DRIVER_SMALL else conditions.DRIVER_TOO_OLD


def _node_reason(seen: BoardSnapshot) -> str:
    if seen.legacy_symlink:
        return conditions.LEGACY_NODE_SYMLINK
    forbidden = any(node.state == "forbidden" for node in seen.nodes)
    return conditions.NODE_FORBIDDEN if forbidden else conditions.NODE_MISSING


def _condition(type: str, status: conditions.Status, reason: str, finding: Finding) -> Condition:
    return condition(type, status, reason, explain(finding.sentence, f"{finding.command}, on the board"))


# ---- ThermalPressure -----------------------------------------------------------------------------------------------------------------


def thermal_pressure(seen: BoardSnapshot, *, before: bool) -> Condition | None:
    """Return whether heat slows the board down, given whether it did `before`; None without an NPU."""
    if not seen.soc.npu_cores:
        return None
    throttled, above = is_throttled(seen), heat(seen)
    if throttled is None:
        why = explain("the kernel shows neither temperatures nor cooling", "ls /sys/class/thermal, on the board")
        return condition(conditions.THERMAL_PRESSURE, "Unknown", conditions.TEMPERATURE_UNKNOWN, why)
    if throttled or (before and above is not None and above > -COOLER_CELSIUS):
        why = "heat keeps clocks below what is asked for, so models are slower: the board needs better cooling or less work"
        command = "grep . /sys/class/thermal/thermal_zone*/temp, on the board"
        return condition(conditions.THERMAL_PRESSURE, "True", conditions.THROTTLED, explain(why, command))
    return condition(conditions.THERMAL_PRESSURE, "False", conditions.NOT_THROTTLED)


# ---- ClocksPinned --------------------------------------------------------------------------------------------------------------------


def is_settled(items: Sequence[Item]) -> bool:
    """Return whether setting the clocks again would change nothing: each is as wanted, at its highest, or not there."""
    return all(item.outcome in _SETTLED or item.outcome == "missing" for item in items)


def clocks_pinned(wanted: Clocks, items: Sequence[Item], *, has_npu: bool, has_profile: bool, problem: str = "") -> Condition | None:
    """Return whether the clocks run at the vendor's frequencies.

    Args:
        wanted: `Board.spec.tuning.clocks`.
        items: How each clock stands after the last attempt, or what undoing left.
        has_npu: Whether the board has an NPU; without one nothing is said unless Fixed is wanted.
        has_profile: Whether it is known how this chip's clocks are fixed.
        problem: Why nobody could set them.
    """
    type = conditions.CLOCKS_PINNED
    if wanted == "Unmanaged":
        left = [item.why for item in items if item.outcome in {"left", "refused"}]
        if problem or left:
            why = problem or "; ".join(left[:ITEMS_NAMED_MAX])
            return condition(type, "False", conditions.CLOCKS_LEFT, explain(why, "rkfleet doctor, on the board"))
        return condition(type, "False", conditions.CLOCKS_UNMANAGED) if has_npu else None
    if not has_profile:
        why = "spec.tuning.clocks is Fixed and there is no profile for this machine, which is no RK3588 or RK3576"
        command = "rkfleet board tune NAME --clocks unmanaged"
        return condition(type, "False", conditions.NO_CLOCK_PROFILE, explain(why, command))
    if problem:
        return condition(type, "False", conditions.CLOCKS_FORBIDDEN, explain(problem, HELPER_COMMAND))
    failed = [item for item in items if item.needed and item.outcome not in _SETTLED]
    if failed:
        return _failed(failed)
    notes = [_note(item) for item in items if item.outcome != "pinned" and not (item.name == "idle" and item.outcome == "missing")]
    return condition(type, "True", conditions.CLOCKS_FIXED, "; ".join(notes))


def _failed(failed: Sequence[Item]) -> Condition:
    """Name each clock that is not as wanted, with node, wanted and got; the reason and the command are the first one's."""
    reasons = {"missing": conditions.CLOCK_MISSING, "refused": conditions.CLOCK_REFUSED}
    first = failed[0]
    said = "; ".join(_sentence(item) for item in failed[:ITEMS_NAMED_MAX])
    more = f"; and {len(failed) - ITEMS_NAMED_MAX} more" if len(failed) > ITEMS_NAMED_MAX else ""
    command = "ls /sys/class/devfreq" if first.outcome == "missing" else f"grep . {first.node}/*freq* {first.node}/*governor*"
    reason = reasons.get(first.outcome, conditions.CLOCK_DIFFERS)
    return condition(conditions.CLOCKS_PINNED, "False", reason, explain(f"{said}{more}", f"{command}, on the board"))


def _sentence(item: Item) -> str:
    if item.outcome == "missing":
        return f"{item.name}: the kernel has no {item.node}, {item.wanted} is wanted"
    return item.why or f"{item.name}: {item.node} has {item.got} and {item.wanted} is wanted"


def _note(item: Item) -> str:
    if item.outcome == "highest":
        return f"{item.name} runs at {item.got}, the highest of this chip, instead of {item.wanted}"
    return _sentence(item)
