"""Servers for histories, as real processes: the API of the product over a database, behind TLS, with a short event log.

`python -m tests.support.history.server` reads commands, one JSON line each, and answers each with one line:

- `["start", directory, port, place, log_events, fault]`: forks a server, with a fault if it is named (see `broken.py`); `["ready", pid]`
  when it serves, or `["failed", reason]`.
- `["kill", pid]`: SIGKILL; `["dead", pid]` when nothing is left of it.

Forks of one process that has everything loaded start in a tenth of the time of a new interpreter, so a history can kill often. When the
commands end, every server ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from rkfleet.kinds import KINDS
from tests.support.api import admission_of, running_api
from tests.support.history.broken import broken

_STARTED: set[int] = set()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    admission_of(KINDS)
    gc.freeze()
    for line in sys.stdin.buffer:
        match msgspec.json.decode(line):
            case ["start", directory, port, place, log_events, fault]:
                start(Path(directory), port, place, log_events, fault)
            case ["kill", pid]:
                kill(pid)
                say("dead", pid)
            case other:
                sys.exit(f"no such command: {other}")
    for pid in list(_STARTED):
        kill(pid)


def say(*facts: Any) -> None:
    os.write(1, msgspec.json.encode(facts) + b"\n")


def start(directory: Path, port: int, place: str, log_events: int, fault: str) -> None:
    pid = os.fork()
    if pid:
        _STARTED.add(pid)
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        asyncio.run(serve(directory, port, place, log_events, fault))
    except BaseException as error:  # noqa: BLE001 - the edge of the process
        say("failed", repr(error))
    finally:
        os._exit(1)


async def serve(directory: Path, port: int, place: str, log_events: int, fault: str) -> None:
    options = {"log_events_max": log_events}
    async with running_api(directory, port=port, place=place, store_options=options, wrap=broken(fault)) as api:
        token = directory / "token"
        if not token.exists():  # `running_api` makes tokens of its own, which end at the next start.
            token.write_text(api.tokens.issue_api_token("history", "admin"))
        say("ready", os.getpid())
        await asyncio.Event().wait()


def kill(pid: int) -> None:
    if pid in _STARTED:
        _STARTED.discard(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
