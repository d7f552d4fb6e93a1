"""What a person at a terminal sees of a board without a fleet: how far loading is, where to ask, what went wrong.

In: progress while files are read, then the agent's reports. Out: sentences on standard error, one line each; on a terminal, one line that
is written over while something goes on. Called by `agent/standalone/app.py`. It reads reports, as a controller would, and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from agent.reports import Reports
from agent.standalone.companions import said_of
from rkfleet import conditions
from rkfleet.assignment import AssignedReplica
from rkfleet.clock import Clock
from rkfleet.racing import until_first
from rkfleet.report import ReplicaState

__all__ = ["Terminal"]

_ON_THE_WAY: Final = frozenset({conditions.LOADING, conditions.FETCHING, conditions.WORKER_STOPPED})
TICK_SECONDS: Final = 0.5  # How often the moving line moves.


class Terminal:
    """One stream of text for people."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        """Take the stream; only where it is a terminal a line is written over."""
        self._out: Final = out
        self._clock: Final = clock
        self._moves: Final = out.isatty()
        self._open_line = False
        self._percent: Final[dict[Path, int]] = {}
        self._said: Final[dict[str, str]] = {}

    def say(self, sentence: str) -> None:
        """Write one line."""
        self._out.write(f"{self._erase()}{sentence}\n")
        self._out.flush()

    def progress(self, path: Path, done: int, total: int) -> None:
        """Show how much of a file was read."""
        percent = 100 * done // max(1, total)
        if path not in self._percent:
            self._percent[path] = 0
            self.say(f"reading {path} ({total / 1e9:.2f} GB), which is done once for each file")
        if percent != self._percent[path]:
            self._percent[path] = percent
            self._move(f"  {percent}%")

    async def follow(self, reports: Reports, replicas: tuple[AssignedReplica, ...], url: Callable[[], str]) -> None:
        """Say what loads, what answers and what does not, until cancelled."""
        began = self._clock.monotonic()
        told = False
        while True:
            version = reports.version
            states = {one.uid: one for one in reports.state.replicas} if reports.state else {}
            answering = {replica.uid for replica in replicas if _answers(states.get(replica.uid))}
            for replica in replicas:
                self._say_state(replica, states.get(replica.uid), replica.uid in answering)
            if len(answering) == len(replicas) and not told:
                simulated = reports.state is not None and reports.state.facts.simulated
                self._say_ready(replicas, url(), self._clock.monotonic() - began, simulated=simulated)
                told = True
            waiting = [replica.served_model_name for replica in replicas if replica.uid not in answering]
            if waiting:
                self._move(f"  loading {', '.join(waiting)} ({self._clock.monotonic() - began:.0f} s)")
            await self._next(reports, version, moving=bool(waiting) and self._moves)

    async def _next(self, reports: Reports, version: int, *, moving: bool) -> None:
        """Return when there is something new to say, or when the moving line is due."""
        due = [self._clock.sleep(TICK_SECONDS)] if moving else []
        await until_first(reports.changed(version), *due)

    def _say_state(self, replica: AssignedReplica, state: ReplicaState | None, answers: bool) -> None:
        """Say why a model does not answer, each reason once however often it is tried again, and when it does after all."""
        ready = conditions.find(state.conditions, conditions.READY) if state else None
        if ready is None:
            return
        if answers:
            if self._said.pop(replica.uid, ""):
                self.say(f"{replica.served_model_name} answers again")
        elif ready.reason not in _ON_THE_WAY:
            why = conditions.advice(ready.message)[0]
            if self._said.get(replica.uid) != why:
                self._said[replica.uid] = why
                self.say(f"{replica.served_model_name} does not answer: {why}")

    def _say_ready(self, replicas: tuple[AssignedReplica, ...], url: str, seconds: float, *, simulated: bool) -> None:
        body = {"model": replicas[0].served_model_name, "messages": [{"role": "user", "content": "Hello"}]}
        self.say(f"ready after {seconds:.1f} s: {url}/v1 serves {', '.join(map(said_of, replicas))}")
        self.say(f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d {_quoted(json.dumps(body))}")
        if simulated and any(replica.runtime == "rkllm" for replica in replicas):
            self.say(
                "simulated: the library of the NPU's runtime needs no NPU; no model runs on it, and its speeds are what the file asks for"
            )
        self.say("Ctrl-C stops it.")

    def _move(self, text: str) -> None:
        if self._moves:
            self._out.write(f"{self._erase()}{text}")
            self._out.flush()
            self._open_line = True

    def _erase(self) -> str:
        """Return what takes the moving line away."""
        self._open_line, was = False, self._open_line
        return "\r\x1b[K" if was else ""


def _answers(state: ReplicaState | None) -> bool:
    ready = conditions.find(state.conditions, conditions.READY) if state else None
    return ready is not None and ready.status == "True"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
