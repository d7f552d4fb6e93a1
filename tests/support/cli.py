"""The command line inside the test's process: the same `main`, with its words, its kubeconfig and what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rkfleet.cli.main import main

RUN_SECONDS_MAX = 20


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli:
    """`rkfleet` with one kubeconfig. Output is captured for the whole process, so one command runs at a time."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    async def run(self, *words: str) -> Ran:
        """Run a command to its end, in a thread, because it has an event loop of its own."""
        async with asyncio.timeout(RUN_SECONDS_MAX):
            return await asyncio.to_thread(self._run, words)

    async def ok(self, *words: str) -> str:
        """Run it, demand success, and return what it printed."""
        ran = await self.run(*words)
        assert ran.code == 0, f"rkfleet {' '.join(words)}: {ran}"
        return ran.out

    async def fails(self, status: int, *words: str) -> str:
        """Run it, demand this exit status, and return its error."""
        ran = await self.run(*words)
        assert ran.code == status, f"rkfleet {' '.join(words)}: {ran}"
        return ran.err

    def _run(self, words: tuple[str, ...]) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with self._as_typed(words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
                code: object = 0
            except SystemExit as end:
                code = end.code
        return Ran(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def _as_typed(self, words: tuple[str, ...]) -> Iterator[None]:
        before, sys.argv = sys.argv, ["rkfleet", *words]
        old = os.environ.get("RKFLEET_KUBECONFIG")
        os.environ["RKFLEET_KUBECONFIG"] = str(self._kubeconfig)
        try:
            yield
        finally:
            sys.argv = before
            if old is None:
                del os.environ["RKFLEET_KUBECONFIG"]
            else:
                os.environ["RKFLEET_KUBECONFIG"] = old
