"""What everybody who touches simulated boards agrees on: the chips with their names, memory and cores, and the magic of placeholder files.

In: words of a command line. Out: frozen values. Used by the command line, the backends of the agent and `simulation/`, which do not import
each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from rkfleet.errors import Invalid

__all__ = ["BOARDS_MAX", "CHIPS", "HEADER", "MAGIC", "Chip", "board_names", "format_boards", "parse_boards"]

# Placeholder model files begin so. The backend `simulated` loads nothing else, and no other backend loads them.
MAGIC: Final = b"RKFLEET-SIMULATED\n"

HEADER: Final = "x-rkfleet-simulated"  # Of every answer of a simulated board, with the value true; gateways pass it on.

BOARDS_MAX: Final = 500  # Of one host process: 100 are what two cores carry with ease, more is for a larger machine.


class Chip(msgspec.Struct, frozen=True):
    """A chip that can be simulated: memory of a usual board with it, and its NPU cores."""

    soc: str
    memory_bytes: int
    npu_cores: int


CHIPS: Final[Mapping[str, Chip]] = {"rk3588": Chip("rk3588", 16 << 30, 3), "rk3576": Chip("rk3576", 8 << 30, 2)}


def parse_boards(text: str) -> Mapping[str, int]:
    """Read `rk3588=3,rk3576=3`: how many boards of each chip.

    Raises:
        Invalid: A chip is unknown or twice there, a number is none, or there are more than BOARDS_MAX boards.
    """
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        soc, _, number = part.strip().partition("=")
        if soc not in CHIPS:
            raise Invalid(f"simulated boards {text!r}: chip {soc!r} must be one of {', '.join(CHIPS)}")
        if soc in counts:
            raise Invalid(f"simulated boards {text!r}: {soc} is there twice")
        if not number.isdecimal():
            raise Invalid(f"simulated boards {text!r}: {soc} needs a number of boards, as {soc}=3, and has {number!r}")
        counts[soc] = int(number)
    if sum(counts.values()) > BOARDS_MAX:
        raise Invalid(f"simulated boards {text!r}: {sum(counts.values())} boards, one host carries at most {BOARDS_MAX}")
    return counts


def format_boards(counts: Mapping[str, int]) -> str:
    """Return counts as `parse_boards` reads them."""
    return ",".join(f"{soc}={number}" for soc, number in counts.items())


def board_names(counts: Mapping[str, int]) -> Mapping[str, Chip]:
    """Return each board's name and chip: rk3588-1, rk3588-2 and so on."""
    return {f"{soc}-{number}": CHIPS[soc] for soc, count in counts.items() for number in range(1, count + 1)}
