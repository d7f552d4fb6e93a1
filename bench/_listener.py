"""llama.cpp's own HTTP listener and nothing else: the peer of `bench.chat` and `bench.llamacpp`, which start it by `listener`.

`python -m bench._listener MODEL CONTEXT_TOKENS THREADS PLACES` prints the base URL and serves until standard input ends. Everything that is
not named here is the library's default; the agent's workers set more (see `agent/workers/llamacpp.py`), and that is part of the comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

__all__ = ["listener"]


@contextlib.asynccontextmanager
async def listener(model: Path, *, context_tokens: int, threads: int, places: int = 1) -> AsyncIterator[str]:
    """Run llama.cpp's listener in a process of its own and yield its base URL; `places` requests run at a time, each with its context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench._listener", str(model), str(context_tokens), str(threads), str(places),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


def main(arguments: Sequence[str]) -> int:
    import xllamacpp

    model, context_tokens, threads, places = arguments
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = int(places)
    parameters.n_ctx = int(context_tokens) * int(places)
    parameters.kv_unified = False  # every place has a context of its own
    parameters.cpuparams.n_threads = int(threads)
    parameters.cpuparams_batch.n_threads = int(threads)
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the library's own clean-up waits for open connections


if __name__ == "__main__":
    main(sys.argv[1:])
