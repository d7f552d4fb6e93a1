"""The self-test as a program: options in, lines while it runs, the report at its end, status 1 if a check failed.

Called by `agent/doctor.py`, whose option `--self-test` it is. While it runs it prints one line for each check, or with `--events` one JSON
object for each step, which `rkfleet doctor` shows on a terminal as it likes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from agent.board.kernel_log import follow_kernel_log
from agent.selftest.arguments import options_of
from agent.selftest.report import MARKS, Redactor, counts, document, markdown
from agent.selftest.running import Result, World, run
from agent.selftest.values import Limits, Outcome
from agent.workers import backends
from agent.workers.base import Backend
from agent.workers.libraries import Library
from rkfleet.benchmarks import load_table
from rkfleet.clock import Clock, SystemClock, format_time
from rkfleet.errors import FailedPrecondition, Invalid

__all__ = ["leave", "main"]

CHECK_FAILED: Final = Invalid.exit_status
LEAVE_SECONDS: Final = 5.0  # Every worker was killed and waited for before.
STOPPED: Final = 128 + signal.SIGINT  # As a shell tells that a program was interrupted.


class _Lines:
    """Tells of each check in a line."""

    def __init__(self, out: TextIO) -> None:
        self._out: Final = out

    def begin(self, check: str, title: str) -> None:
        """Take that a check begins; a line tells of its end."""

    def end(self, outcome: Outcome) -> None:
        """Print what was found, and what helps."""
        seconds = f" ({outcome.seconds:.1f} s)" if outcome.seconds else ""
        lines = [f"{MARKS[outcome.status]} {outcome.title}: {outcome.sentence}{seconds}"]
        if outcome.status == "failed" and outcome.failure is not None:
            lines.append(f"    known failure {outcome.failure.number}, {outcome.failure.reason}: {outcome.failure.message}")
        if outcome.remedy and outcome.status == "failed":
            lines.append(f"    try: {outcome.remedy}")
        if outcome.status == "failed":
            lines += [f"    | {line}" for line in outcome.lines]
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()

    def over(self, result: Result, report: Path) -> None:
        """Print the sum."""
        number = counts(result.outcomes)
        simulated = "\nsimulated: yes; no NPU and no model were used" if result.simulated else ""
        self._out.write(
            f"{number['passed']} passed, {number['failed']} failed, {number['skipped']} skipped in {result.seconds:.0f} s{simulated}\n"
            f"report: {report}\n"
        )
        self._out.flush()


class _Events:
    """Tells of each step as a JSON object."""

    def __init__(self, out: TextIO) -> None:
        self._out: Final = out

    def begin(self, check: str, title: str) -> None:
        """Print that a check begins."""
        self._say({"event": "begin", "check": check, "title": title})

    def end(self, outcome: Outcome) -> None:
        """Print its outcome."""
        self._say({"event": "end", **msgspec.to_builtins(outcome)})

    def over(self, result: Result, report: Path) -> None:
        """Print the sum."""
        about = {"event": "over", "report": str(report), "simulated": result.simulated, "seconds": round(result.seconds, 1)}
        self._say({**about, **counts(result.outcomes)})

    def _say(self, event: Mapping[str, Any]) -> None:
        self._out.write(msgspec.json.encode(event).decode() + "\n")
        self._out.flush()


def main(words: argparse.Namespace, out: TextIO, *, limits: Limits = Limits(), environ: Mapping[str, str] = os.environ) -> int:
    """Run the self-test and return the exit status.

    Args:
        words: The command line, with `self_test`.
        out: Where lines go.
        limits: What it may cost.
        environ: Environment of the workers.

    Raises:
        FleetError: It cannot begin, or the report cannot be written.
    """
    options, clock = options_of(words), SystemClock()
    report = _report_path(words.output, clock)
    told = _Events(out) if words.events else _Lines(out)

    def backend(library: Library) -> Backend:
        return backends.rkllm(
            library, environ=environ, new_api_key=lambda: secrets.token_urlsafe(24), follow_kernel=lambda: follow_kernel_log(options.root)
        )

    world = World(clock=clock, table=load_table(), backend=backend, new_secret=lambda: f"zq{secrets.token_hex(4)}", limits=limits)

    async def body() -> int:
        async with asyncio.TaskGroup() as tasks:
            result = await run(options, world, told, tasks)
            _write(report, result, Redactor(options, socket.gethostname()), format_time(clock.now()))
            told.over(result, report)
            status = CHECK_FAILED if counts(result.outcomes)["failed"] else 0
            await leave(status)
        return status

    try:
        return asyncio.run(body())
    except KeyboardInterrupt:
        return STOPPED
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def leave(status: int) -> None:
    """Return once no worker is left; if one cannot be ended, end this program with the status: the report is written.

    A process that waits inside the NPU's driver outlives SIGKILL, and whoever waits for it waits for ever.
    """
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left and (await asyncio.wait(left, timeout=LEAVE_SECONDS))[1]:
        os._exit(status)


def _report_path(output: str, clock: Clock) -> Path:
    if output:
        return Path(output)
    return Path(f"rkfleet-self-test-{socket.gethostname()}-{clock.now():%Y-%m-%d}.md")


def _write(path: Path, result: Result, redactor: Redactor, date: str) -> None:
    if path.suffix == ".json":
        text = msgspec.json.format(msgspec.json.encode(document(result, redactor, date))).decode() + "\n"
    else:
        text = markdown(result, redactor, date)
    try:
        path.write_text(text)
    except OSError as error:
        raise FailedPrecondition(f"report {path} cannot be written: {error.strerror}; name another file with -o") from error
