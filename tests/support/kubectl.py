"""The real kubectl, as a program: found beside the one on PATH, run with a home directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

RUN_SECONDS_MAX = 20


def kubectl_binary(minor: int = 32) -> str:
    """Return the path of kubectl 1.<minor>, or of the kubectl on PATH where it comes alone.

    A kubectl on PATH may be a dispatcher that runs one of the versions beside it; tests name the version. Without any kubectl the test is
    skipped, but not in CI.
    """
    found = shutil.which("kubectl")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("kubectl is not on PATH")
        pytest.skip("kubectl is not on PATH")
    directory = Path(found).resolve().parent
    if not list(directory.glob("kubectl.1.*")):
        return found
    versioned = directory / f"kubectl.1.{minor}"
    if not versioned.exists():
        pytest.skip(f"there is no {versioned.name} beside kubectl")
    return str(versioned)


def kubectl_minors() -> list[int]:
    """Return the minor versions of kubectl that are here, in order; without any the test is skipped, but not in CI."""
    directory = Path(kubectl_binary()).resolve().parent
    beside = sorted(int(file.suffix[1:]) for file in directory.glob("kubectl.1.*") if file.suffix[1:].isdigit())
    if beside:
        return beside
    said = subprocess.run([kubectl_binary(), "version", "--client", "-o", "json"], capture_output=True, check=True, timeout=RUN_SECONDS_MAX)
    return [int(msgspec.json.decode(said.stdout)["clientVersion"]["minor"].rstrip("+"))]


class Ran(NamedTuple):
    """How a kubectl ended."""

    code: int
    out: str
    err: str


class Kubectl:
    """One version of kubectl with one kubeconfig; its caches die with the home directory."""

    def __init__(self, kubeconfig: Path, home: Path, minor: int = 32) -> None:
        self.binary = kubectl_binary(minor)
        self._environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kubeconfig),
            "GOMAXPROCS": "1",  # Tests share few cores; one thread starts no slower.
        }
        home.mkdir(parents=True, exist_ok=True)

    async def run(self, *arguments: str, stdin: Any = None, env: dict[str, str] | None = None) -> Ran:
        """Run it to its end; `stdin` that is no text is sent as JSON."""
        text = stdin if isinstance(stdin, str) or stdin is None else msgspec.json.encode(stdin).decode()
        async with self.started(*arguments, env=env or {}) as process:
            async with asyncio.timeout(RUN_SECONDS_MAX):
                out, err = await process.communicate(None if text is None else text.encode())
            return Ran(process.returncode or 0, out.decode(), err.decode())

    async def ok(self, *arguments: str, stdin: Any = None, env: dict[str, str] | None = None) -> str:
        """Run it, demand success, and return what it printed."""
        ran = await self.run(*arguments, stdin=stdin, env=env)
        assert ran.code == 0, f"kubectl {' '.join(arguments)}: {ran}"
        return ran.out

    async def json(self, *arguments: str) -> Any:
        """Run it with `-o json` and return what it printed."""
        return msgspec.json.decode(await self.ok(*arguments, "-o", "json"))

    @contextlib.asynccontextmanager
    async def started(self, *arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start it; it is killed at the end of the block if it still runs."""
        process = await asyncio.create_subprocess_exec(
            self.binary,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self._environment, **(env or {})},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
