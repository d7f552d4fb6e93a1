"""Faults of other servers for these boards that no other test causes, with the agent's real way to start a real worker process."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from rkfleet.errors import Unavailable
from tests.support import npu_worker
from tests.support.runtimes import keys

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, which builds the simulated runtime; try: apt-get install gcc libc6-dev"
)

LINES_PER_TOKEN = 400
TOKENS = 60
GONE_SECONDS = 5.0  # A tenth of a second on a machine that does nothing else; the answer would take minutes.


def test_the_next_request_waits_for_an_abort_that_takes_its_time_and_sees_nothing_of_it(tmp_path: Path) -> None:
    """The cache is cleared after the run has returned, by who ran it: what the next request sees is its own."""

    async def body() -> None:
        script = tmp_path / "script"
        script.write_text(keys(abort_ms=300))
        model = npu_worker.model(tmp_path, reply="echo", tokens_per_s=200)
        async with npu_worker.running(npu_worker.spec_of(model, npu_worker.npu("G4", tmp_path)), script) as running:
            async with running.stream("hippopotamus " * 200, max_tokens=1000) as reply:
                async for data in reply.events():
                    if b'"content"' in data:
                        break
            answer = await running.chat("giraffe")
        assert answer.error is None
        assert "giraffe" in answer.text
        assert "hippopotamus" not in answer.text
        settled = [line for line in running.lines if " ran " in line]
        assert len(settled) == 2  # one after the other, each to its end

    asyncio.run(body())


def test_a_stop_does_not_wait_for_the_answer_that_is_running(tmp_path: Path) -> None:
    """Also where the library hears no abort: the process ends, and its client is told."""

    async def ask_and_stop(running: npu_worker.Running) -> None:
        async with running.stream("hello") as reply:
            async for data in reply.events():
                if b'"content"' in data:
                    running.worker.stop()

    async def body() -> None:
        script = tmp_path / "script"
        script.write_text(keys(hang_at=3, hang_ignores_abort=True))
        async with npu_worker.running(npu_worker.spec_of(npu_worker.model(tmp_path), npu_worker.npu("G4", tmp_path)), script) as running:
            async with asyncio.timeout(GONE_SECONDS):
                with pytest.raises(Unavailable):
                    await ask_and_stop(running)
                assert (await running.worker.exited()).reason is None

    asyncio.run(body())


def test_the_runtime_is_mapped_by_the_worker_alone_which_inherits_nothing(tmp_path: Path) -> None:
    """It is another program, started by exec: no open file of the agent's, a session of its own, and the agent never maps the library."""

    async def body() -> None:
        library = tmp_path / "librkllmrt.so"
        told = npu_worker.npu("G4", tmp_path)
        shutil.copy(told.library, library)
        with (tmp_path / "of-the-agent").open("w") as held:
            spec = npu_worker.spec_of(npu_worker.model(tmp_path), npu_worker.npu("G4", tmp_path, library=str(library)))
            async with npu_worker.running(spec) as running:
                process = Path("/proc") / str(running.worker.pid)
                assert str(library) in (process / "maps").read_text()
                assert str(library) not in Path("/proc/self/maps").read_text()
                assert b"agent.workers.child" in (process / "cmdline").read_bytes()
                assert held.name not in {str(one.readlink()) for one in (process / "fd").iterdir()}
                assert int((process / "stat").read_text().rpartition(")")[2].split()[3]) == running.worker.pid  # its own session

    asyncio.run(body())


def test_a_worker_that_prints_without_end_is_not_held_up(tmp_path: Path) -> None:
    """Megabytes of lines between tokens: they are read as they come, and the answer is whole."""

    async def body() -> None:
        script = tmp_path / "script"
        script.write_text(keys(token_lines=LINES_PER_TOKEN))
        model = npu_worker.model(tmp_path, reply_tokens=TOKENS)
        async with npu_worker.running(npu_worker.spec_of(model, npu_worker.npu("G4", tmp_path)), script) as running:
            answer = await running.chat("hello")
        assert (answer.error, answer.usage["completion_tokens"]) == (None, TOKENS)

    asyncio.run(body())
