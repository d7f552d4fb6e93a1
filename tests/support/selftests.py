"""The self-test in tests: a world of simulated libraries, a model that every check of it passes, and who notes what is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.board.kernel_log import follow_kernel_log
from agent.selftest.running import Result, Told, World, run
from agent.selftest.subject import Setup, Subject, loaded
from agent.selftest.values import Limits, Options, Outcome
from agent.workers import backends
from agent.workers.libraries import Library, NamedLibrary
from agent.workers.rkllm.releases import Generation
from rkfleet.benchmarks import Row, Table
from rkfleet.clock import SystemClock
from tests.support.board_tree import BoardTree, rk3588_tree
from tests.support.runtimes import RELEASES, keys, model_file, runtime

SECRET = "zqheron"
NAME = "Heron-1B"  # A model that only the tables of tests have.
# Long prompts take time, so that an abort meets them; answers end soon enough for turns and late enough for a window that shifts.
SPEED = {"ttft_ms": 6, "seqlen": 16, "tokens_per_s": 1000, "reply_tokens": 60, "split_utf8": 1}


def row(**changes: Any) -> Row:
    """Return a row that the model of `model` meets."""
    fields = {
        "sdk_version": "1.3.0", "model": NAME, "parameters_billions": 1.0, "dtype": "w8a8", "soc": "rk3588", "max_context_tokens": 320,
        "time_to_first_token_seconds": 0.2, "tokens_per_second": 400.0, "memory_bytes": 1 << 30,
    }  # fmt: skip
    return Row(**{**fields, **changes})


def model(directory: Path, name: str = "heron-1b-rk3588-w8a8.rkllm", **values: object) -> Path:
    return model_file(directory / name, **{**SPEED, **values})


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.outcomes: list[Outcome] = []

    def begin(self, check: str, title: str) -> None:
        self.begun.append(check)

    def end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Place:
    """A healthy board, a script that its library reads, and files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "script"
        self.script.write_text("")
        self.tree: BoardTree = rk3588_tree(directory)
        self.environ: Mapping[str, str] = {**os.environ, "RKLLM_SIMULATION": str(self.script)}

    def says(self, **script: object) -> None:
        """Change what the library does from the next run on."""
        self.script.write_text(keys(**script))

    def adapter(self) -> Path:
        return model_file(self.directory / "law_lora.rkllm")

    def backend(self, library: Library) -> backends.ChildBackend:
        return backends.rkllm(
            library, environ=self.environ, new_api_key=lambda: "key", follow_kernel=lambda: follow_kernel_log(self.tree.root)
        )

    def world(self, *rows: Row, **limits: Any) -> World:
        made = Limits(**{"runs": 2, "abort": 0.25, **limits})
        return World(clock=SystemClock(), table=Table(rows or (row(),)), backend=self.backend, new_secret=lambda: SECRET, limits=made)

    def options(self, generation: Generation = "G4", *models: Path, **changes: Any) -> Options:
        library = NamedLibrary(runtime(RELEASES[generation]))
        fields = {
            "models": models or (model(self.directory),),
            "libraries": (library,),
            "root": self.tree.root,
            "data_dir": self.tree.data_dir,
        }
        return Options(**{**fields, **changes})

    async def run(self, options: Options, world: World | None = None, **more: Any) -> Result:
        return await self.told(options, Notes(), world, **more)

    async def told(self, options: Options, told: Told, world: World | None = None, **more: Any) -> Result:
        """Make the checks and tell somebody of them."""
        async with asyncio.TaskGroup() as tasks:
            return await run(options, world or self.world(), told, tasks, **more)

    @contextlib.asynccontextmanager
    async def loaded(self, generation: Generation = "G4", **changes: Any) -> AsyncIterator[Subject]:
        """Load a model as the self-test does."""
        library = Library(path=runtime(RELEASES[generation]), version=RELEASES[generation], generation=generation, how="symbols")
        setup = Setup(
            model=model(self.directory), library=library, lock_path=self.directory / "npu.lock", cache_dir=str(self.directory / "prompts")
        )
        world = self.world()
        async with asyncio.TaskGroup() as tasks, loaded(
            msgspec.structs.replace(setup, **changes), self.backend(library), tasks,
            clock=world.clock, limits=world.limits, seconds_max=20, secret=SECRET,
        ) as subject:  # fmt: skip
            yield subject


def statuses(result: Result) -> dict[str, str]:
    """Return the status of each check; of one that was made twice, the worst."""
    order = ("skipped", "passed", "failed")
    found: dict[str, str] = {}
    for one in result.outcomes:
        found[one.check] = max(found.get(one.check, "skipped"), one.status, key=order.index)
    return found


def outcome_of(result: Result, check: str) -> Outcome:
    return next(one for one in result.outcomes if one.check == check)
