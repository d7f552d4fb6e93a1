"""The doctor: what is wrong with this board, without a controller. `rkfleet doctor` becomes this program.

In: the board's file system. Out: a table with one line for each check and a command for each that failed, or JSON; status 1 if one failed.
Unknown is no failure: it says what keeps it unknown. `examine` makes the findings and `report` shows them. With `--self-test` it is the
self-test (`agent/selftest`), whose first checks are these findings.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from agent.board.diagnosis import Finding, Verdict, diagnose
from agent.board.npu import Account
from agent.board.readings import read_text
from agent.board.slowness import slowness
from agent.board.snapshot import BoardSnapshot
from agent.board.telemetry import observe_board
from agent.config import library_argument
from agent.selftest.arguments import add_arguments, given_option
from rkfleet.benchmarks import load_table
from rkfleet.errors import FleetError, Invalid, NotFound

__all__ = ["Speed", "compare", "examine", "find_account", "main", "parse_arguments", "report"]

CHECK_FAILED: Final = Invalid.exit_status
OUTPUTS: Final = ("table", "json")
_MARKS: Final[dict[Verdict, str]] = {"ok": "✓", "bad": "✗", "unknown": "?"}
_COLOURS: Final[dict[Verdict, str]] = {"ok": "\x1b[32m", "bad": "\x1b[31m", "unknown": "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with status 2 and a usage line when it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="rkfleet doctor", description="Say what is wrong with this board, and what to type: driver, NPU, clocks, heat, memory, disk."
    )
    add = parser.add_argument
    add(
        "--output",
        "-o",
        default="",
        metavar="table|json|FILE",
        help="table or json (default table); of a self-test the report, .md or .json",
    )
    add("--data-dir", type=Path, default=Path("/var/lib/rkfleet"), metavar="DIR", help="the agent's directory (default %(default)s)")
    add("--user", default="", metavar="NAME", help="for whom the NPU must open (default: who asks)")
    add(
        "--runtime-library",
        dest="runtime_libraries",
        type=library_argument,
        action="append",
        default=[],
        metavar="FILE[=GENERATION]",
        help="librkllmrt.so, if it lies where the loader does not look; repeatable",
    )
    add("--speed", type=_speed, metavar="MODEL,DTYPE=N", help="tokens/s that a model of the vendor's table reaches: why is it slow?")
    add("--filesystem-root", type=Path, default=Path("/"), metavar="DIR", help="where /proc, /sys and /dev are (default %(default)s)")
    add_arguments(parser)
    words = parser.parse_args(arguments)
    if words.self_test and words.output in OUTPUTS:
        parser.error(f"-o {words.output}: of a self-test -o names the report, a file that ends in .md or .json")
    if not words.self_test and words.output not in {"", *OUTPUTS}:
        parser.error(f"-o {words.output}: table or json; a file is written by --self-test only")
    if not words.self_test and (option := given_option(words)):
        parser.error(f"{option} needs --self-test")
    return words


class Speed(msgspec.Struct, frozen=True):
    """What somebody measured: a model and dtype of the benchmark table, and tokens per second."""

    model: str
    dtype: str
    tokens_per_second: float


def _speed(text: str) -> Speed:
    found = re.fullmatch(r"([^,=]+),([^,=]+)=(\d+(?:\.\d+)?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like Qwen3-0.6B,w8a8=15.8; see: rkfleet bench table")
    return Speed(found[1], found[2], float(found[3]))


def find_account(root: Path, name: str) -> Account:
    """Return user and groups of a name, from `etc/passwd` and `etc/group` below the root.

    Raises:
        NotFound: There is no such user.
    """
    for line in (read_text(root / "etc/passwd") or "").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[0] == name and fields[2].isdecimal() and fields[3].isdecimal():
            groups = [one.split(":") for one in (read_text(root / "etc/group") or "").splitlines()]
            also = {int(one[2]) for one in groups if len(one) > 3 and one[2].isdecimal() and name in one[3].split(",")}
            return Account(int(fields[2]), frozenset({int(fields[3]), *also}))
    raise NotFound(f"user {name!r} of --user is not in /etc/passwd")


def examine(arguments: argparse.Namespace) -> tuple[BoardSnapshot, tuple[Finding, ...]]:
    """Look at the board and return what was seen and what is wrong.

    Raises:
        NotFound: `--user` names nobody, or `--speed` no row of the benchmark table.
    """
    root: Path = arguments.filesystem_root
    account = find_account(root, arguments.user) if arguments.user else None
    library = arguments.runtime_libraries[0].path if arguments.runtime_libraries else None
    seen = observe_board(root, arguments.data_dir, account=account, runtime_library=library)
    findings = diagnose(seen)
    speed: Speed | None = arguments.speed
    return seen, findings if speed is None else (*findings, compare(seen, speed))


def compare(seen: BoardSnapshot, speed: Speed) -> Finding:
    """Return whether a speed is that of the vendor's table on this chip, and what makes it slower.

    Raises:
        NotFound: The table has no such row; the message names what it has.
    """
    row = load_table().get(speed.model, speed.dtype, seen.soc.name)
    slow = slowness(speed.tokens_per_second, row.tokens_per_second, seen)
    if slow is not None:
        return Finding(check="speed", verdict="bad", sentence=slow.sentence, command=slow.command)
    share = speed.tokens_per_second / row.tokens_per_second
    return Finding(check="speed", verdict="ok", sentence=f"{speed.tokens_per_second:g} tokens/s, {share:.0%} of the table's")


def report(findings: Sequence[Finding], out: TextIO, *, output: str = "table", seen: BoardSnapshot | None = None) -> int:
    """Print the findings and return the exit status: 1 if a check failed, else 0."""
    failed = [one for one in findings if one.verdict == "bad"]
    if output == "json":
        body: dict[str, Any] = {"healthy": not failed, "findings": findings}
        if seen is not None:
            body["snapshot"] = {**msgspec.structs.asdict(seen), "soc": seen.soc._asdict()}
        out.write(msgspec.json.format(msgspec.json.encode(body)).decode() + "\n")
    else:
        _print_table(findings, out)
        unknown = sum(one.verdict == "unknown" for one in findings)
        out.write(f"{len(findings)} checks: {len(failed)} failed, {unknown} unknown\n")
    return CHECK_FAILED if failed else 0


def _print_table(findings: Sequence[Finding], out: TextIO) -> None:
    width = max((len(one.check) for one in findings), default=0)
    coloured = out.isatty() and "NO_COLOR" not in os.environ
    for one in findings:
        mark = f"{_COLOURS[one.verdict]}{_MARKS[one.verdict]}{_PLAIN}" if coloured else _MARKS[one.verdict]
        out.write(f"{mark} {one.check.ljust(width)}  {one.sentence}\n")
        if one.command:
            out.write(f"{' ' * (width + 4)}try: {one.command}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine this board and return the exit status."""
    words = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        if words.self_test:
            from agent.selftest import program  # noqa: PLC0415 (workers and asyncio take longer to import than a diagnosis takes)

            return program.main(words, sys.stdout)
        seen, findings = examine(words)
    except FleetError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return report(findings, sys.stdout, output=words.output or OUTPUTS[0], seen=seen)


if __name__ == "__main__":
    sys.exit(main())
