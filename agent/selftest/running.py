"""The self-test from its beginning to its end: looks at the board and its libraries, loads the model, makes every check, keeps the limits.

In: `Options`, and the world (clock, backends, table, who is told). Out: a `Result`. Called by `program.py` and by tests. One check never
keeps another from being made: what a check raises is its failure, and a worker that died of one is loaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agent.board.diagnosis import diagnose
from agent.board.snapshot import BoardSnapshot
from agent.board.telemetry import observe_board
from agent.failures.lines import Ending, recognise
from agent.failures.modes import Failure
from agent.selftest import neighbours
from agent.selftest.board import BoardFacts, facts_of, outcomes_of
from agent.selftest.checks import AFTER, BEFORE, CHECKS, Check
from agent.selftest.library import Found, LibraryFacts, check_library, look_at_libraries
from agent.selftest.speed import Reference, guess_reference, speed
from agent.selftest.subject import Header, NotLoaded, Setup, Subject, Traits, loaded, peak_memory_bytes, size_of
from agent.selftest.values import LINES_MAX, Encounter, Limits, Options, Outcome, Verdict, failed, passed, shown_bytes, skipped
from agent.workers.base import Backend
from agent.workers.libraries import Library
from rkfleet.benchmarks import Table
from rkfleet.clock import Clock, give_way
from rkfleet.errors import FleetError
from rkfleet.http1 import ConnectionLost

__all__ = ["Result", "Told", "World", "run"]

RUN_DIRECTORY: Final = "run/rkfleet"  # Where the agent's lock of the NPU is, if there is an agent.
SETTLE_SECONDS: Final = 5.0  # From a broken connection until the process is gone; writing a core file takes some of it.
LAST_SECONDS: Final = 2.0  # A check that could have less is not begun.

_ALWAYS: Final = frozenset({"library", "load"})  # Without them there is nothing to check.
_TITLES: Final[Mapping[str, str]] = {**dict(BEFORE), **{one.name: one.title for one in CHECKS}, **dict(AFTER)}


class Told(Protocol):
    """Who is told how it goes on."""

    def begin(self, check: str, title: str) -> None:
        """Take that a check begins."""
        ...

    def end(self, outcome: Outcome) -> None:
        """Take its outcome."""
        ...


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between a board and a test.

    Attributes:
        backend: Makes the backend of a library.
        new_secret: Makes a word that no model says by itself.
    """

    clock: Clock
    table: Table
    backend: Callable[[Library], Backend]
    new_secret: Callable[[], str]
    limits: Limits = Limits()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found; `report.py` writes it down.

    Attributes:
        simulated: The library said that there is no NPU behind it; None without a loaded model.
        model_bytes: Size of the model file.
    """

    board: BoardFacts
    libraries: tuple[LibraryFacts, ...]
    header: Header | None
    simulated: bool | None
    model_bytes: int
    reference: str
    outcomes: tuple[Outcome, ...]
    seconds: float


async def run(options: Options, world: World, told: Told, tasks: asyncio.TaskGroup, *, only: AbstractSet[str] = frozenset()) -> Result:
    """Make every check that the options allow.

    Args:
        options: What to test.
        world: Clock, table, backend.
        told: Who is told of each check.
        tasks: Where the tasks of workers live; one that cannot be ended is left there.
        only: Names of the checks to make besides library and loading; empty for all.
    """
    return await _Run(options, world, told, tasks, only).run()


class _Run:
    def __init__(self, options: Options, world: World, told: Told, tasks: asyncio.TaskGroup, only: AbstractSet[str]) -> None:
        self._options: Final = options
        self._world: Final = world
        self._told: Final = told
        self._tasks: Final = tasks
        self._only: Final = only
        self._clock: Final = world.clock
        self._limits: Final = world.limits
        self._began: Final = world.clock.monotonic()
        self._outcomes: Final[list[Outcome]] = []
        self._traits: Final = Traits()
        self._seen = BoardSnapshot()
        self._newest: Subject | None = None  # the worker that was loaded last
        self._header: Header | None = None
        self._reference = Reference(row=None, why="no model was loaded")

    async def run(self) -> Result:
        options = self._options
        self._told.begin("board", "The board")
        self._seen = await asyncio.to_thread(self._observe)
        for outcome in outcomes_of(diagnose(self._seen)):
            self._note(outcome)
        found = await self._libraries()
        if not options.models:
            self._skip_rest("no --model was given")
        elif not found.usable:
            self._skip_rest("there is no runtime library that can be used")
        else:
            with tempfile.TemporaryDirectory(prefix="rkfleet-self-test-") as scratch:
                await self._with_model(found.usable[0], Path(scratch))
        return Result(
            board=facts_of(options.root, self._seen),
            libraries=found.facts,
            header=self._header,
            simulated=self._header.simulated if self._header is not None else None,
            model_bytes=size_of(options.models[0]) if options.models else 0,
            reference=self._reference.why,
            outcomes=tuple(self._outcomes),
            seconds=self._clock.monotonic() - self._began,
        )

    # ---- before the model

    def _observe(self) -> BoardSnapshot:
        named = self._options.libraries[0].path if self._options.libraries else None
        return observe_board(self._options.root, self._options.data_dir, runtime_library=named)

    async def _libraries(self) -> Found:
        found = Found((), (), ())

        async def look() -> Verdict:
            nonlocal found
            found = await asyncio.to_thread(look_at_libraries, self._options.libraries, self._options.root)
            return check_library(found, needed=bool(self._options.models))

        await self._make("library", look, self._limits.check)
        return found

    # ---- with the model

    async def _with_model(self, library: Library, scratch: Path) -> None:
        """Load the model; if it does not load with the files that go with it, once more without them; and make the checks."""
        options = self._options
        setup = Setup(
            model=options.models[0],
            library=library,
            lock_path=_lock(options.root, scratch),
            cache_dir=str(scratch / "prompts"),
            adapter=options.adapter,
            encoder=options.encoder,
            config=options.config,
            template=options.template,
        )
        todo = [check for check in CHECKS if self._wants(check.name)]
        restarts = 0
        while True:
            async with self._opened(setup) as subject:
                if subject is not None:
                    await self._checks(subject, todo)
                    if subject.exit is None:
                        await self._last_checks(subject)
                        break
            if subject is None and (not setup.extras or self._header is not None):
                self._skip_rest("the model is not loaded")
                return
            if subject is None:
                setup = setup.plain
                continue
            restarts += 1
            if restarts > self._limits.restarts:
                self._skip_rest(f"the worker ended {restarts} times, and is not loaded again")
                return
        await self._make("shift", lambda: neighbours.shift(setup, self._load), min(self._limits.load, self._left()) + self._limits.check)

    @contextlib.asynccontextmanager
    async def _opened(self, setup: Setup) -> AsyncIterator[Subject | None]:
        """Load the model for the block, with the outcome of loading if it is the first time or it failed; None if it is not loaded."""
        self._told.begin("load", _TITLES["load"])
        began = self._clock.monotonic()
        try:
            async with self._load(setup) as subject:
                if self._header is None:
                    await self._loaded(subject, began)
                yield subject
                return
        except NotLoaded as error:
            with_extras = f" (with {', '.join(setup.extras)})" if setup.extras else ""
            said = failed(f"the model was not loaded{with_extras}: {error.message}")
            self._note(self._outcome("load", said, began, error.exit.failure, error.log.last(LINES_MAX)))
        except FleetError as error:
            self._note(self._outcome("load", failed(error.message), began))
        yield None

    @contextlib.asynccontextmanager
    async def _load(self, setup: Setup) -> AsyncIterator[Subject]:
        world, limit = self._world, max(0.0, min(self._limits.load, self._left()))
        async with loaded(
            setup, world.backend(setup.library), self._tasks,
            clock=world.clock, limits=world.limits, seconds_max=limit, secret=world.new_secret(), traits=self._traits,
        ) as subject:  # fmt: skip
            self._newest = subject
            yield subject

    async def _loaded(self, subject: Subject, began: float) -> None:
        self._header = header = subject.header
        self._reference = guess_reference(self._world.table, self._options, header, self._seen.soc.name)
        model_bytes = size_of(subject.setup.model)
        about = [
            f"runtime {header.runtime}" if header.runtime else "",
            f"toolkit {header.toolkit}" if header.toolkit else "",
            f"for {header.target}" if header.target else "",
            header.dtype,
            f"{header.npu_cores} NPU cores" if header.npu_cores else "",
            f"context up to {header.context_limit}" if header.context_limit else "",
        ]
        said = passed(
            f"{shown_bytes(model_bytes)} in {subject.load_seconds:.1f} s: {', '.join(word for word in about if word)}",
            {
                "load_seconds": round(subject.load_seconds, 3),
                "model_bytes": model_bytes,
                "context_tokens": subject.setup.context_tokens,
            },
        )
        self._note(self._outcome("load", said, began))
        await self._make("model-memory", lambda: self._memory(subject), self._limits.check, subject)

    async def _memory(self, subject: Subject) -> Verdict:
        peak = peak_memory_bytes(subject.worker.pid)
        if peak is None:
            return skipped("the kernel does not tell the worker's peak memory")
        row = self._reference.row
        figures = {"peak_memory_bytes": peak, "available_before_bytes": self._seen.memory_available_bytes or 0}
        shown = f"at most {shown_bytes(peak)} after loading"
        if row is None:
            return passed(f"{shown}; nothing to compare with: {self._reference.why}", figures)
        figures |= {"row_memory_bytes": row.memory_bytes}
        limit = self._limits.memory_share * row.memory_bytes
        if peak > limit:
            why = f"{shown}, {peak / row.memory_bytes:.0%} of the row's {shown_bytes(row.memory_bytes)}"
            return failed(why, figures, remedy="set requires.memory of the variant to what this board needs")
        return passed(f"{shown}; the row has {shown_bytes(row.memory_bytes)} at its highest", figures)

    async def _checks(self, subject: Subject, todo: list[Check]) -> None:
        """Make the checks that are left, until one takes the worker with it."""
        while todo and subject.exit is None:
            check = todo.pop(0)
            await self._make(check.name, functools.partial(check.run, subject), self._limits.check, subject)

    async def _last_checks(self, subject: Subject) -> None:
        limits, options = self._limits, self._options
        await self._make("speed", lambda: speed(subject, self._reference, self._observe), limits.speed + limits.check, subject)
        if len(options.models) > 1:
            limit = min(limits.load, self._left()) + limits.check
            await self._make("second-model", lambda: neighbours.beside(subject, options.models[1], self._load), limit, subject)
        else:
            self._skip("second-model", "only one --model was given")
        await self._make("unload", lambda: neighbours.unload(subject), limits.unload + limits.check, subject)

    # ---- one check

    async def _make(self, name: str, step: Callable[[], Awaitable[Verdict]], seconds_max: float, subject: Subject | None = None) -> None:
        """Make a check within its limit and that of all, and note its outcome."""
        if not self._wants(name):
            return
        if subject is not None and subject.exit is not None:
            self._skip(name, "the worker ended in an earlier check")
            return
        left = self._left()
        if left < LAST_SECONDS:
            self._skip(name, f"the limit of {self._limits.total:.0f} s for all checks is reached")
            return
        self._told.begin(name, _TITLES[name])
        began, limit = self._clock.monotonic(), min(seconds_max, left)
        before = subject.log.count if subject is not None else 0
        newest = self._newest
        failure: Failure | None = None
        lines: tuple[str, ...] = ()
        try:
            async with asyncio.timeout(limit):
                verdict = await step()
        except TimeoutError:
            verdict = failed(f"it took longer than {limit:.0f} s, its limit")
        except NotLoaded as error:
            verdict, failure, lines = failed(f"the model was not loaded: {error.message}"), error.exit.failure, error.log.last(LINES_MAX)
        except FleetError as error:
            verdict = failed(error.message)
            if subject is not None and isinstance(error, ConnectionLost):
                await _settled(subject)
        except Exception as error:  # noqa: BLE001 (the edge of a check: what it could not read must not keep the others from being made)
            verdict = failed(f"the worker's answer cannot be read: {error!r}")
        if self._newest is not newest:  # the check has loaded another worker, which is what it is about
            subject, before = self._newest, 0
        if verdict.status == "failed" and subject is not None and not lines:
            await subject.log.settle()
            verdict, failure, lines = _explained(verdict, subject, before)
        self._note(self._outcome(name, verdict, began, failure, lines))

    def _outcome(self, name: str, verdict: Verdict, began: float, failure: Failure | None = None, lines: tuple[str, ...] = ()) -> Outcome:
        return Outcome(
            check=name,
            title=_TITLES[name],
            status=verdict.status,
            sentence=verdict.sentence,
            seconds=round(self._clock.monotonic() - began, 3),
            figures=verdict.figures,
            remedy=verdict.remedy or (failure.remedy if failure is not None else ""),
            failure=Encounter(number=failure.number, reason=failure.reason, message=failure.message, remedy=failure.remedy)
            if failure
            else None,
            lines=lines,
        )

    def _note(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._told.end(outcome)

    def _skip(self, name: str, reason: str) -> None:
        if self._wants(name):
            self._note(Outcome(check=name, title=_TITLES[name], status="skipped", sentence=reason))

    def _skip_rest(self, reason: str) -> None:
        made = {outcome.check for outcome in self._outcomes}
        for name in _TITLES:
            if name not in made:
                self._skip(name, reason)

    def _wants(self, name: str) -> bool:
        return not self._only or name in self._only or name in _ALWAYS

    def _left(self) -> float:
        return self._limits.total - (self._clock.monotonic() - self._began)


async def _settled(subject: Subject) -> None:
    """Wait for the end of a worker whose connection broke off, if it ends."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            await subject.worker.exited()
            await give_way()


def _explained(verdict: Verdict, subject: Subject, before: int) -> tuple[Verdict, Failure | None, tuple[str, ...]]:
    """Return what is known of a failure: how the worker ended, if it did, else what its log says since `before` lines."""
    lines = subject.log.last(LINES_MAX, since=before)
    if subject.exit is None or subject.exit.reason is None:
        return verdict, recognise(lines, (), Ending(loaded=True)), lines
    said = msgspec.structs.replace(verdict, sentence=f"{verdict.sentence}; {subject.exit.message}")
    return said, subject.exit.failure, lines


def _lock(root: Path, scratch: Path) -> Path:
    """Return the lock of the board, which an agent on it holds too, or one of our own."""
    shared = root / RUN_DIRECTORY
    return (shared if os.access(shared, os.W_OK | os.X_OK) else scratch) / "npu.lock"
