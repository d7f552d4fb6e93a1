"""The registry as a process: how it stops, who may use its directory, and what a kill in the middle of a push leaves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rkfleet.ports import free_port
from tests.support.registry import REPOSITORY, RegistryWorld

CHUNK = 64 << 10
CHUNKS = 200
pytestmark = pytest.mark.processes


@contextlib.asynccontextmanager
async def registry_process(world: RegistryWorld, *, ready: bool = True) -> AsyncIterator[asyncio.subprocess.Process]:
    flags = (
        "--data-dir", str(world.root / "registry"), "--pki-dir", str(world.pki.directory), "--port", str(world.port),
        "--ops-port", str(free_port()), "--token-realm", "https://127.0.0.1:9/token",
    )  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller.registry", *flags, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert child.stderr
        if ready:
            async with asyncio.timeout(20):
                while b'"serving"' not in (line := await child.stderr.readline()):
                    assert line, "the registry ended before it served"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def test_it_stops_on_a_signal_and_lets_one_process_into_its_directory(tmp_path: Path) -> None:
    async def body() -> None:
        world = RegistryWorld(tmp_path)
        async with registry_process(world) as first:
            async with registry_process(world, ready=False) as second:
                assert second.stderr
                said = await second.stderr.read()
                assert await second.wait() == 1
                assert f"is in use by process {first.pid}" in said.decode()
            first.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await first.wait() == 0

    asyncio.run(body())


def test_a_registry_killed_again_and_again_under_a_push_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """Two kills at seeded moments: the push goes on by itself, the blob is right, and no part of a file is left."""
    moment = random.Random(4)
    file = tmp_path / "model.gguf"
    file.write_bytes(moment.randbytes(CHUNK * CHUNKS))
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"

    async def body() -> None:
        world = RegistryWorld(tmp_path)
        reached: list[int] = []
        async with world.client(chunk_bytes=CHUNK) as client, asyncio.TaskGroup() as tasks:
            moved = asyncio.Event()

            def progress(sent: int) -> None:
                reached.append(sent)
                moved.set()

            push = tasks.create_task(client.push_blob(REPOSITORY, digest, file, progress))
            for number in range(1, 3):
                async with registry_process(world) as process:
                    until = (number - moment.random()) * CHUNK * CHUNKS / 3
                    while not reached or reached[-1] < until:
                        moved.clear()
                        async with asyncio.timeout(20):
                            await moved.wait()
                    process.kill()
            assert not push.done()
            async with registry_process(world):
                assert await push
                assert reached == sorted(reached), "what was acknowledged was lost"
                assert await client.find_blob(REPOSITORY, digest) == CHUNK * CHUNKS
            assert os.listdir(world.root / "registry" / "uploads") == []

    asyncio.run(body())
