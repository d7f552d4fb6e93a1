"""The worker process: `python -m agent.workers.child`, started by `agent/workers/backends.py`, never forked.

In: one `Load` line on standard input. Out: `Loaded` or `Failed` and then beats, as lines on what was standard output; everything a
library prints goes to standard error, which the agent reads. The runtime library serves HTTP from its own threads; this program only
loads it, watches that it lives, and ends with its agent.

Ending. A runtime may hold Python's global lock for as long as it loads, so nothing written in Python could notice that the agent is
gone. The kernel does: after the first line the control pipe sends SIGIO at its end (or at any byte), and SIGIO's default action is to
terminate the process. Nothing needs to be saved, so this is also how a worker is asked to stop.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from agent.workers.pipe import LINE_BYTES_MAX, Beat, Event, Failed, Load, Loaded, decode_load, encode
from rkfleet.errors import FleetError

__all__ = ["RUNTIMES", "LoadedModel", "end_with", "main", "prefer_to_be_killed"]

# The module that loads for each backend; it has `load(load: Load) -> LoadedModel`. Imported here only, so the agent never maps a runtime.
RUNTIMES: Final[Mapping[str, str]] = {"llamacpp": "agent.workers.llamacpp", "rkllm": "agent.workers.rkllm.worker"}

BEAT_SECONDS: Final = 5.0  # A tenth of the silence that counts as hung (supervisor), and too rare to cost anything.

# When memory ends, the kernel should take a worker, which is started again, and not the agent, which holds all of them.
# Source: proc(5), oom_score_adj: -1000..1000; raising the own value needs no privilege.
OOM_SCORE_ADJUSTMENT: Final = "500"


class LoadedModel(Protocol):
    """A model behind its listener."""

    @property
    def endpoint(self) -> str:
        """Return the HTTP base URL on loopback."""
        ...

    def probe(self) -> None:
        """Return once the runtime's own loop has answered; a runtime that hangs never does.

        Raises:
            FleetError: The runtime is beyond help; the worker ends, with `details["reason"]` as the reason of its exit.
        """
        ...


def main() -> int:
    """Load, then beat until the agent is gone; returns only when the model cannot be loaded or the runtime is beyond help."""
    # The agent alone decides when a worker ends: Ctrl-C in a terminal reaches the whole foreground group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = sys.stdin.fileno()
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    line = _read_line(control)
    end_with(control)
    prefer_to_be_killed(Path("/proc/self/oom_score_adj"))
    try:
        load = decode_load(line)
        model = _runtime(load.backend)(load)
    except FleetError as error:
        _say(events, Failed(reason=error.details.get("reason", "LoadFailed"), message=error.message))
        return 1
    _say(events, Loaded(endpoint=model.endpoint))
    while True:
        try:
            model.probe()
        except FleetError as error:
            _say(events, Failed(reason=error.details.get("reason", "Crashed"), message=error.message))
            os._exit(1)  # nothing that a runtime which hangs has registered may run now
        _say(events, Beat())
        select.select([control], [], [], BEAT_SECONDS)


def _runtime(backend: str) -> Callable[[Load], LoadedModel]:
    load: Callable[[Load], LoadedModel] = importlib.import_module(RUNTIMES[backend]).load
    return load


def _read_line(control: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(control, LINE_BYTES_MAX)
        if not piece:
            sys.exit(0)  # the agent was gone before it said anything
        line += piece
    return line


def end_with(control: int) -> None:
    """Let the kernel terminate this process when the control pipe ends, or if anything comes through it.

    Source: fcntl(2), F_SETOWN and O_ASYNC; a pipe or socket signals its reader when the last writer closes.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, fcntl.fcntl(control, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([control], [], [], 0)[0]:
        sys.exit(0)  # it ended before it was armed


def prefer_to_be_killed(score: Path) -> None:
    """Offer this process to the kernel when memory ends, through its file `oom_score_adj`."""
    try:
        score.write_text(OOM_SCORE_ADJUSTMENT)
    except OSError as error:  # a container may forbid it; the worker runs all the same
        print(f"{score}: {error}", file=sys.stderr)  # noqa: T201 (standard error is the worker's log)


def _say(events: int, event: Event) -> None:
    os.write(events, encode(event))


if __name__ == "__main__":
    sys.exit(main())
