"""A cheap client for both sides of a comparison: so many connections, each sends one prepared request after the other.

HTTP/1.1 over TLS with keep-alive, without a library between the socket and the clock, because a client that costs more than the server
would measure itself. It runs in a process of its own: `python -m bench._https_load PORT CA_FILE CONNECTIONS < REQUESTS`, where each line of
REQUESTS is a JSON string, a whole request. It prints one JSON object: seconds, statuses by their counts, and latencies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Load", "load", "request_of"]

READ_BYTES: Final = 1 << 16


class Load(msgspec.Struct, frozen=True):
    """What a run came to.

    Attributes:
        seconds: From the first request to the last answer.
        statuses: How often each status was answered.
        p50_seconds: Median time of a request.
        p99_seconds: 99th percentile.
    """

    seconds: float
    statuses: dict[str, int]
    p50_seconds: float
    p99_seconds: float


def request_of(port: int, method: str, path: str, body: bytes, token: str = "") -> bytes:
    """Return a whole request."""
    authorization = f"authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: bench/1\r\n{authorization}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def load(port: int, ca_file: Path, connections: int, requests: Sequence[bytes]) -> Load:
    """Send the requests over so many connections, from a process of its own."""
    lines = b"\n".join(msgspec.json.encode(request.decode()) for request in requests)
    command = [sys.executable, "-m", "bench._https_load", str(port), str(ca_file), str(connections)]
    done = subprocess.run(command, input=lines, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return msgspec.json.decode(done.stdout, type=Load)


async def _send(port: int, tls: ssl.SSLContext, requests: Sequence[bytes], statuses: dict[str, int], times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=READ_BYTES)
    for request in requests:
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = head[9:12].decode()
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        if at >= 0:
            await reader.readexactly(int(lowered[at + 15 : lowered.index(b"\r\n", at)]))
        elif b"transfer-encoding: chunked" in lowered:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
            await reader.readuntil(b"\r\n")
        times.append(time.perf_counter() - started)
        statuses[status] = statuses.get(status, 0) + 1
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()


async def _run(port: int, ca_file: str, connections: int, requests: Sequence[bytes]) -> Load:
    tls = ssl.create_default_context(cafile=ca_file)
    statuses: dict[str, int] = {}
    times: list[float] = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for first in range(connections):
            tasks.create_task(_send(port, tls, requests[first::connections], statuses, times))
    seconds = time.perf_counter() - started
    times.sort()
    return Load(seconds, statuses, times[len(times) // 2], times[int(len(times) * 0.99)])


def main() -> None:
    import uvloop

    port, ca_file, connections = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    requests = [msgspec.json.decode(line, type=str).encode() for line in sys.stdin.buffer.read().splitlines()]
    found = uvloop.run(_run(port, ca_file, connections, requests))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
