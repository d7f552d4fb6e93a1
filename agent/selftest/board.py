"""The board under the self-test: what it is, and its doctor's findings as outcomes.

In: the file system root. Out: `BoardFacts`, and one `Outcome` for each finding. Called by `running.py`. Nothing that tells this board from
another of its kind is read: no serial number, no address, no name.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.board.diagnosis import Finding
from agent.board.readings import read_text
from agent.board.snapshot import BoardSnapshot
from agent.selftest.values import Outcome, Status

__all__ = ["BoardFacts", "facts_of", "outcomes_of"]

_STATUS: dict[str, Status] = {"ok": "passed", "bad": "failed", "unknown": "skipped"}


class BoardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the head of a report; empty and None are unknown.

    Attributes:
        model: As the device tree names the board.
        architecture: Of the machine that this runs on.
        system: The distribution, as os-release names it.
        clocks_hertz: Current frequency of each clock, by name.
        temperatures_celsius: By zone.
    """

    model: str
    soc: str
    npu_cores: int
    kernel: str
    architecture: str
    system: str
    driver: str
    clocks_hertz: dict[str, int]
    governors: dict[str, str]
    temperatures_celsius: dict[str, float]
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    storage: str


def facts_of(root: Path, seen: BoardSnapshot) -> BoardFacts:
    """Return the facts of a snapshot, and those that it does not hold."""
    disk = seen.disk
    return BoardFacts(
        model=read_text(root / "proc/device-tree/model") or "",
        soc=seen.soc.model or seen.soc.name,
        npu_cores=seen.soc.npu_cores,
        kernel=seen.kernel,
        architecture=platform.machine(),
        system=_system(root),
        driver=f"{seen.driver.family} {seen.driver.version}".strip() if seen.driver else "",
        clocks_hertz={one.name: one.current_hertz for one in seen.frequencies if one.current_hertz is not None},
        governors={one.name: one.governor for one in seen.frequencies if one.governor is not None},
        temperatures_celsius={zone.name: zone.celsius for zone in seen.zones},
        memory_total_bytes=seen.memory_total_bytes,
        memory_available_bytes=seen.memory_available_bytes,
        storage=f"{disk.kind or 'unknown kind'} {disk.device}" if disk else "",
    )


def outcomes_of(findings: Sequence[Finding]) -> tuple[Outcome, ...]:
    """Return the doctor's findings as outcomes: what is unknown is skipped, and its sentence says what keeps it unknown."""
    return tuple(
        Outcome(
            check=one.check,
            title=f"Board: {one.check}",
            status=_STATUS[one.verdict],
            sentence=one.sentence,
            remedy=one.command if one.verdict != "ok" else "",
        )
        for one in findings
    )


def _system(root: Path) -> str:
    for line in (read_text(root / "etc/os-release") or "").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip('"')
    return ""
