"""Why a model is slower than it should be, although nothing failed. Pure.

In: tokens per second as measured on this board, those that its chip and dtype should give (`rkfleet.benchmarks`), and a snapshot. Out: by
how much it falls short, and the findings that explain it, those first that cost most. Called by whoever has both figures: the doctor's
self-test, the agent for a replica with a reference row.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agent.board.diagnosis import Finding, diagnose
from agent.board.snapshot import BoardSnapshot

__all__ = ["SLOW_SHARE", "Slowness", "slowness"]

# Two runs of one model on one board differ by a few percent; a prompt that is longer than the table's costs some more.
SLOW_SHARE: Final = 0.85
# A bus of half the width halves decoding, which reads every weight for every token.
HALF_BUS_SHARE: Final = 0.65
# What explains slow tokens, those first that cost most: cores at 408 MHz halve them, memory at a quarter of its clock does worse.
_EXPLAIN: Final = (
    "throttling", "cpu-governor", "memory-clock", "npu-clock", "cpu-mask", "npu-clients", "memory-bus", "npu-driver", "memory",
)  # fmt: skip


class Slowness(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is slower than expected.

    Attributes:
        share: Measured by expected tokens per second.
        causes: Bad findings that explain it, then unknown ones that might; the last is a guess where nothing was found.
        sentence: All of it in one sentence, for a condition or an event.
        command: The first cause's.
    """

    share: float
    causes: tuple[Finding, ...]
    sentence: str
    command: str


def slowness(measured_tokens_per_second: float, expected_tokens_per_second: float, snapshot: BoardSnapshot) -> Slowness | None:
    """Return why decoding is slow, or None if it is not, or if nothing is expected of it."""
    if expected_tokens_per_second <= 0 or measured_tokens_per_second >= SLOW_SHARE * expected_tokens_per_second:
        return None
    share = max(measured_tokens_per_second, 0.0) / expected_tokens_per_second
    found = {one.check: one for one in diagnose(snapshot)}
    named = [found[check] for check in _EXPLAIN if check in found]
    causes = [one for one in named if one.verdict == "bad"] or [
        *(one for one in named if one.verdict == "unknown"),
        _guess(share, snapshot),
    ]
    said = f"{measured_tokens_per_second:.3g} tokens/s are {share:.0%} of the {expected_tokens_per_second:.3g} that this chip gives"
    first = causes[0]
    return Slowness(share=share, causes=tuple(causes), sentence=f"{said}: {first.sentence}", command=first.command)


def _guess(share: float, snapshot: BoardSnapshot) -> Finding:
    """Return what to suspect when nothing is wrong that can be seen."""
    if share < HALF_BUS_SHARE and snapshot.soc.memory_bus_bits >= 64 and snapshot.memory_bus_bits is None:
        why = "clocks, heat and cores are as they should be, so the board may have a 32-bit memory bus, as some of 8 GB and less have"
        return Finding(check="memory-bus", verdict="unknown", sentence=why, command="sudo dmesg | grep -iE 'ddr|lpddr'")
    why = "no cause can be seen on the board: compare prompt length and context with those of the reference"
    return Finding(check="reference", verdict="unknown", sentence=why, command="rkfleet bench table")
