"""A cheap client that holds many watches and times how one change reaches all of them.

HTTP/1.1 over TLS, without a library between the socket and the clock: a client that costs more than the server would measure itself. It
runs in a process of its own: `python -m bench._watch_load < PLAN`. First it says `open` on a line of its own, when every watch has its
head; then it makes the changes one after the other and says one JSON object about the deliveries, each timed from the moment the change was
sent until the watch had the whole line. A watch that got something else than its neighbours, or twice, or in another order, ends it with an
error.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from bench._https_load import request_of

__all__ = ["Deliveries", "Plan"]

OPEN_AT_ONCE: Final = 50  # Handshakes at a time; more would wait in the server's queue of connections.
PAUSE_SECONDS: Final = 0.05  # Between changes, so that each is one by itself.
PATIENCE_SECONDS: Final = 30.0
AGE: Final = re.compile(rb'"\d+s"|"\d+m(\d+s)?"')  # Of a row in a table: two rows made at the same moment may differ in it.


class Plan(msgspec.Struct, frozen=True):
    """What to do.

    Attributes:
        watch_path: What the watches ask for, with its query.
        accept: The form that they ask for.
        change_path: Object that is changed, with a merge patch of its annotation.
        watchers: How many watches.
        changes: How many changes.
    """

    port: int
    ca_file: str
    token: str
    watch_path: str
    accept: str
    change_path: str
    watchers: int
    changes: int


class Deliveries(msgspec.Struct, frozen=True):
    """What a run came to.

    Attributes:
        count: Deliveries.
        p50_seconds: Of the deliveries.
        p99_seconds: Of the deliveries.
        last_seconds: The latest delivery.
        answer_seconds: Median time until a change was answered to who made it.
        line_bytes: Length of the last line.
    """

    count: int
    p50_seconds: float
    p99_seconds: float
    last_seconds: float
    answer_seconds: float
    line_bytes: int


class Watcher(asyncio.Protocol):
    """One watch: it notes when each line came and what it was."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open: Final[asyncio.Future[None]] = loop.create_future()
        self.lines: Final[list[tuple[float, bytes]]] = []
        self.more = asyncio.Event()
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        """Take whole chunks; the server sends each line as one."""
        now = time.perf_counter()
        self._buffer += data
        if not self.open.done():
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            self._buffer = bytearray(rest)
            if head[9:12] == b"200":
                self.open.set_result(None)
            else:
                self.open.set_exception(RuntimeError(f"a watch was answered {head.decode()}"))
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end], 16)
            if len(self._buffer) < end + size + 4:
                return
            self.lines.append((now, bytes(self._buffer[end + 2 : end + 2 + size])))
            del self._buffer[: end + size + 4]
            self.more.set()

    async def wait(self, lines: int) -> None:
        """Return when so many lines are here."""
        while len(self.lines) < lines:
            self.more.clear()
            await self.more.wait()


async def run(plan: Plan) -> Deliveries:
    """Open the watches, make the changes, and return the times."""
    loop, tls = asyncio.get_running_loop(), ssl.create_default_context(cafile=plan.ca_file)
    request = (
        f"GET {plan.watch_path} HTTP/1.1\r\nhost: 127.0.0.1:{plan.port}\r\naccept: {plan.accept}\r\n"
        f"authorization: Bearer {plan.token}\r\n\r\n"
    ).encode()
    gate = asyncio.Semaphore(OPEN_AT_ONCE)

    async def opened() -> tuple[Watcher, asyncio.Transport]:
        async with gate:
            transport, watcher = await loop.create_connection(lambda: Watcher(loop), "127.0.0.1", plan.port, ssl=tls)
            transport.write(request)
            await watcher.open
            return watcher, transport

    opening = [loop.create_task(opened()) for _ in range(plan.watchers)]
    watches = [await task for task in opening]
    watchers = [watcher for watcher, _ in watches]
    sys.stdout.write("open\n")
    sys.stdout.flush()
    sent, answers = [], []
    reader, writer = await asyncio.open_connection("127.0.0.1", plan.port, ssl=tls)
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number in range(plan.changes):
            body = msgspec.json.encode({"metadata": {"annotations": {"bench": f"change-{number:04d}"}}})
            change = request_of(plan.port, "PATCH", plan.change_path, body, plan.token)
            sent.append(time.perf_counter())
            writer.write(change.replace(b"application/json", b"application/merge-patch+json", 1))
            answers.append(await _answered(reader) - sent[-1])
            await asyncio.gather(*(watcher.wait(number + 1) for watcher in watchers))
            await asyncio.sleep(PAUSE_SECONDS)  # noqa: TID251 - a client of its own, without the program's clock
    writer.close()
    seconds = _checked(watchers, sent)
    for _, transport in watches:
        transport.abort()
    return Deliveries(
        count=len(seconds),
        p50_seconds=seconds[len(seconds) // 2],
        p99_seconds=seconds[len(seconds) * 99 // 100],
        last_seconds=seconds[-1],
        answer_seconds=statistics.median(answers),
        line_bytes=len(watchers[0].lines[-1][1]),
    )


async def _answered(reader: asyncio.StreamReader) -> float:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if head[9:12] != b"200":
        raise RuntimeError(f"a change was answered {head.decode()}")
    at = head.index(b"content-length:") + 15
    await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    return time.perf_counter()


def _checked(watchers: Sequence[Watcher], sent: Sequence[float]) -> list[float]:
    """Return the seconds of all deliveries, sorted, after every watch has been compared with the first one."""
    wanted = [AGE.sub(b"", line) for _, line in watchers[0].lines]
    for number, line in enumerate(wanted):
        if line.count(b"\n") != 1 or f"change-{number:04d}".encode() not in line:
            raise RuntimeError(f"change {number} came as {line[:200]!r}")
    for watcher in watchers:
        if [AGE.sub(b"", line) for _, line in watcher.lines] != wanted:
            raise RuntimeError(f"a watch got {len(watcher.lines)} lines for {len(sent)} changes, or others than its neighbours")
    return sorted(moment - start for watcher in watchers for (moment, _), start in zip(watcher.lines, sent, strict=True))


def main() -> None:
    import uvloop

    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.write(msgspec.json.encode(uvloop.run(run(plan))).decode() + "\n")


if __name__ == "__main__":
    main()
