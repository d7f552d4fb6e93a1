"""How long one change takes to reach a thousand watchers of the API, over TLS.

`python -m bench.watchers [--watchers N] [--changes N]`. The shipped controller runs as its own process; another process holds the
connections, each with a watch of its own, and takes the time at which each line comes. The clock starts before the request that makes the
change is sent and both processes read the same clock, so a figure has the write, its flush and the fan-out in it. Each watcher must see
every change exactly once and in order, or the benchmark ends.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bench._control_plane import control_plane
from bench._https_load import request_of
from bench.report import Goal, Result, finish, result
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import SystemClock
from rkfleet.kinds import ConfigMap
from rkfleet.meta import Ref

WATCHERS: Final = 1_000
CHANGES: Final = 50
OPEN_AT_ONCE: Final = 50  # Handshakes; more would only wait for each other.
PATH: Final = "/api/v1/namespaces/default/configmaps"
CLOCK: Final = SystemClock()


class Watcher:
    """One connection with one watch."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, port: int, tls: ssl.SSLContext, token: str, version: str) -> None:
        """Connect and wait for the head of the answer."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        self._writer.write(request_of(port, "GET", f"{PATH}?watch=true&resourceVersion={version}", b"", token))
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head

    async def follow(self, changes: int) -> None:
        """Note the version and the time of so many changes."""
        assert self._reader is not None
        while len(self.seen) < changes:
            line = await self._reader.readuntil(b"\n")
            if line.startswith(b'{"type"'):
                now = time.clock_gettime(time.CLOCK_MONOTONIC)
                self.seen.append((msgspec.json.decode(line)["object"]["metadata"]["resourceVersion"], now))

    def close(self) -> None:
        """Cut the connection."""
        if self._writer is not None:
            self._writer.transport.abort()


async def watch(port: int, ca_file: str, token: str, version: str, *, watchers: int, changes: int) -> None:
    """Hold the connections: say `ready`, follow, and print what every watcher saw."""
    tls = ssl.create_default_context(cafile=ca_file)
    held = [Watcher() for _ in range(watchers)]
    for first in range(0, watchers, OPEN_AT_ONCE):
        await asyncio.gather(*(one.open(port, tls, token, version) for one in held[first : first + OPEN_AT_ONCE]))
    print("ready", flush=True)
    await asyncio.gather(*(one.follow(changes) for one in held))
    sys.stdout.buffer.write(msgspec.json.encode([one.seen for one in held]))
    for one in held:
        one.close()


async def measure(watchers: int, changes: int, directory: Path) -> list[Result]:
    async with control_plane(directory, CLOCK, lambda sentence: print(sentence, file=sys.stderr)) as plane, plane.client() as api:
        cluster = load_cluster(plane.kubeconfig)
        ca_file = directory / "ca.crt"
        ca_file.write_text(cluster.ca_pem)
        version = (await api.list(ConfigMap.resource.name)).resource_version
        port = urlsplit(cluster.server).port or 443
        arguments = [str(port), str(ca_file), cluster.token, version, str(watchers), str(changes)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.watchers", "--hold", *arguments, stdout=asyncio.subprocess.PIPE, limit=1 << 26
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        started = await _change(api, changes)
        seen = msgspec.json.decode(await process.stdout.read(), type=list[list[tuple[str, float]]])
        await process.wait()
    return _judge(started, seen, watchers)


async def _change(api: ApiClient, changes: int) -> dict[str, float]:
    """Make changes one after the other, each when the one before has had its time; return when each began, by version."""
    started: dict[str, float] = {}
    for number in range(changes):
        name = f"change-{number:04d}"
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        made = await api.create(Ref(ConfigMap.resource.name, "default", name), {"metadata": {"name": name}, "data": {"a": "x" * 500}})
        started[made["metadata"]["resourceVersion"]] = before
        await CLOCK.sleep(0.2)
    return started


def _judge(started: dict[str, float], seen: list[list[tuple[str, float]]], watchers: int) -> list[Result]:
    wrong = [one for one in seen if [version for version, _ in one] != list(started)]
    if wrong or len(seen) != watchers:
        sys.exit(f"{len(wrong)} of {watchers} watchers did not see every change once and in order")
    delays = sorted(moment - started[version] for one in seen for version, moment in one)
    last = sorted(max(one[index][1] for one in seen) - began for index, began in enumerate(started.values()))
    return [
        result(f"one change at {watchers} watchers, p99", "s", [delays[int(len(delays) * 0.99)]], goal=Goal("value", "<=", 0.25)),
        result(f"one change at {watchers} watchers, median", "s", [delays[len(delays) // 2]]),
        result(f"one change at the last of {watchers} watchers, median", "s", [last[len(last) // 2]]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=WATCHERS)
    parser.add_argument("--changes", type=int, default=CHANGES)
    parser.add_argument("--hold", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        import uvloop

        port, ca_file, token, version, watchers, changes = given.hold
        uvloop.run(watch(int(port), ca_file, token, version, watchers=int(watchers), changes=int(changes)))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        return finish("watchers", asyncio.run(measure(given.watchers, given.changes, Path(directory))), CLOCK)


if __name__ == "__main__":
    sys.exit(main())
