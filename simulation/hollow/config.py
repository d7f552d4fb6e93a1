"""The command line of `simulation.hollow`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rkfleet.process import LOG_LEVELS
from simulation.hollow.machine import MEMORY_BYTES

__all__ = ["BOARDS_MAX", "Config", "parse_arguments", "parse_mix", "socs_of"]

BOARDS_MAX = 10_000  # Join tokens that a controller keeps, and half the descriptors that a process usually may open.
PREFIX_LENGTH_MAX = 40  # Of the 63 characters of a board's name.


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is told at its start; each field is a flag, described there."""

    boards: int
    mix: tuple[tuple[str, int], ...]
    controller: str
    kubeconfig: Path | None
    scenario: Path | None
    seconds: float | None
    state: Path | None
    prefix: str
    lifeline_fd: int | None
    log_level: str


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line; a mistake ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="rkfleet simulate",
        description="Hollow boards: the real session protocol from one process, without disk or HTTP, to test how much a controller"
        " carries. Everything such a board says is labelled as simulated.",
    )
    parser.add_argument("--boards", type=_count, default=100, help="how many (default 100)")
    parser.add_argument("--soc", type=_mix, default="rk3588=60,rk3576=40", help="share of each chip (default %(default)s)")
    parser.add_argument("--controller", default="", help="https://host:port of the API; default what the kubeconfig says")
    parser.add_argument("--kubeconfig", type=Path, help="an admin's; default as for every command of rkfleet")
    parser.add_argument("--scenario", type=Path, help="YAML file: load times, failures, churn, outages; see docs/guides/simulate.md")
    parser.add_argument("--seconds", type=_seconds, help="end after so long, counted from the start; default at Ctrl-C")
    parser.add_argument("--state", type=Path, help="file that keeps the boards' keys, so that the next run is the same boards")
    parser.add_argument("--prefix", type=_prefix, default="hollow", help="beginning of each name (default hollow: hollow-rk3588-1)")
    parser.add_argument("--lifeline-fd", type=int, help="stop when this descriptor reaches its end")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="error", help="least level that is logged (default error)")
    given = parser.parse_args(arguments)
    return Config(
        boards=given.boards,
        mix=given.soc,
        controller=given.controller.rstrip("/"),
        kubeconfig=given.kubeconfig,
        scenario=given.scenario,
        seconds=given.seconds,
        state=given.state,
        prefix=given.prefix,
        lifeline_fd=given.lifeline_fd,
        log_level=given.log_level,
    )


def parse_mix(text: str) -> tuple[tuple[str, int], ...]:
    """Read `rk3588=60,rk3576=40`: chips with their shares, which need not add up to anything.

    Raises:
        ValueError: The text says something else; the message is a sentence.
    """
    shares: dict[str, int] = {}
    for part in text.split(","):
        soc, _, share = part.strip().partition("=")
        if soc not in MEMORY_BYTES:
            raise ValueError(f"{soc!r} must be one of {', '.join(MEMORY_BYTES)}")
        if soc in shares:
            raise ValueError(f"{soc} is given twice")
        if not (share.isascii() and share.isdigit()) or len(share) > 6:
            raise ValueError(f"share {share!r} of {soc} must be a number 0..999999")
        shares[soc] = int(share)
    if not any(shares.values()):
        raise ValueError(f"{text!r} leaves no chip a share")
    return tuple(shares.items())


def socs_of(boards: int, mix: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return the chip of each board: as near to the shares as whole boards allow, dealt out evenly."""
    total = sum(share for _, share in mix)
    dealt = dict.fromkeys((soc for soc, _ in mix), 0)
    socs = []
    for number in range(1, boards + 1):
        soc = max(mix, key=lambda one: one[1] * number / total - dealt[one[0]])[0]
        dealt[soc] += 1
        socs.append(soc)
    return tuple(socs)


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= BOARDS_MAX:
        raise argparse.ArgumentTypeError(f"{count} must be 1..{BOARDS_MAX}")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 7 * 86_400:
        raise argparse.ArgumentTypeError(f"{text} must be more than 0 and at most a week")
    return seconds


def _prefix(text: str) -> str:
    letters = text.replace("-", "")
    if not (letters.isascii() and letters.isalnum() and text == text.lower() and text[0] != "-") or len(text) > PREFIX_LENGTH_MAX:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} must be at most {PREFIX_LENGTH_MAX} lower case letters, digits and '-'")
    return text


def _mix(text: str) -> tuple[tuple[str, int], ...]:
    try:
        return parse_mix(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
