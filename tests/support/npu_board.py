"""A board with versions of the simulated NPU runtime: the shipped agent's parts and real worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import httpx2

from agent.parts import installed_libraries
from agent.planning.values import Abilities
from agent.workers import backends
from agent.workers.backends import ChildBackend
from agent.workers.libraries import Library, NamedLibrary, find_libraries
from tests.support.loops import LoopWorld, loop_world
from tests.support.runtimes import runtime


def shipped(library: Library, environ: Mapping[str, str]) -> ChildBackend:
    return backends.rkllm(library, environ=environ, new_api_key=lambda: "k")


@contextlib.asynccontextmanager
async def npu_board(
    root: Path, *versions: str, environ: Mapping[str, str], backend: Callable[[Library, Mapping[str, str]], ChildBackend] = shipped
) -> AsyncIterator[tuple[LoopWorld, httpx2.AsyncClient]]:
    """Run a board whose workers see `environ` besides what this process has, and a client for it."""
    found = await asyncio.to_thread(find_libraries, [NamedLibrary(runtime(version)) for version in versions], root)
    assert found.problems == ()
    made = tuple(backend(one, {**os.environ, **environ}) for one in found.usable)
    abilities = Abilities(
        libraries=installed_libraries([one.runtime for one in made], found.usable), cores=8, memory_bytes=4 << 30, serving_url="",
        npu_lock_path=str(root / "npu.lock"), prompt_cache_dir=str(root / "agent" / "prompt-cache"),
    )  # fmt: skip
    async with (
        loop_world(root, backends=made, abilities=abilities) as w,
        httpx2.AsyncClient(base_url=w.url, trust_env=False, verify=False, timeout=30) as client,
    ):
        yield w, client
