"""Those who watch in a history: a list or a watch with initial events, then a watch that is taken up again wherever it broke.

In: servers, a manner, a recorder. Out: lists and connections in the recorder. A watcher resumes from the last line that it read, at any
server, and lists anew when the server says that this is too long ago. In the end it is told up to which revision it must come.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

import httpx2
import msgspec

from rkfleet.clock import Clock
from tests.support.history.recorder import Recorder
from tests.support.history.records import Delivery, Seen
from tests.support.history.wire import MODELS, Wire, query_of, seen_in

__all__ = ["Manner", "Watcher"]

Manner = Literal["steady", "restless", "slow", "away"]
"""Stays; leaves after a few lines and comes back at once; stops reading for a while; leaves and comes back when much has happened."""

REST_SECONDS = 0.05  # Between two watches: handshakes cost more than what is watched, and clients are to write meanwhile.
PAUSE_SECONDS_MAX = 0.6
LINES_MAX = 25


class Watcher:
    """One of them.

    Args:
        name: In the history.
        wires: To every server, with small buffers if it is slow.
        selection: What it watches.
        manner: How.
    """

    def __init__(
        self,
        name: str,
        wires: Sequence[Wire],
        recorder: Recorder,
        *,
        chance: random.Random,
        selection: str,
        manner: Manner,
        clock: Clock,
    ) -> None:
        self._name = name
        self._wires = wires
        self._recorder = recorder
        self._chance = chance
        self._selection = selection
        self._manner = manner
        self._clock = clock
        self._position: int | None = None
        self._start = 0
        self._deliveries: list[Delivery] = []
        self._goal: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()
        self.expired = 0

    @property
    def selection(self) -> str:
        """What it watches."""
        return self._selection

    def finish(self, revision: int) -> None:
        """Come to this revision and then stop."""
        self._goal.set_result(revision)

    async def run(self, seconds_max: float) -> None:
        """Watch until the goal is reached, which after `finish` must be so within `seconds_max`."""
        watching = asyncio.ensure_future(self._watch_on())
        futures: list[asyncio.Future[Any]] = [watching, self._goal]
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds_max):
                    while not self.arrived and not watching.done():
                        self._moved.clear()
                        await self._moved.wait()
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self._close(last=True)

    @property
    def arrived(self) -> bool:
        """Whether it has come to its goal."""
        return self._goal.done() and self._position is not None and self._position >= self._goal.result()

    async def _watch_on(self) -> None:
        while True:
            wire = self._chance.choice(self._wires)
            if self._position is None:
                await self._begin(wire)
            else:
                await self._follow(wire)
            await self._clock.sleep(REST_SECONDS)

    async def _begin(self, wire: Wire) -> None:
        """Learn what exists, by a list or by a watch that begins with it."""
        initial = self._chance.random() < 0.4
        asked = self._recorder.ask(self._name, "list", selection=self._selection)
        if not initial:
            outcome, page = await wire.ask("GET", MODELS, **query_of(self._selection))
            if outcome != "ok":
                asked.answered("unknown")
                return
            revision = int(page["metadata"]["resourceVersion"])
            asked.answered("ok", *map(seen_in, page["items"]), pages=(revision,))
            self._open(revision)
            return
        seen: list[Seen] = []
        options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        async with contextlib.aclosing(self._lines(wire, **options)) as lines:
            async for line in lines:
                metadata = line["object"]["metadata"]
                if line["type"] == "BOOKMARK":
                    assert metadata["annotations"] == {"k8s.io/initial-events-end": "true"}
                    asked.answered("ok", *seen, pages=(int(metadata["resourceVersion"]),))
                    self._open(int(metadata["resourceVersion"]))
                    return
                assert line["type"] == "ADDED"
                seen.append(seen_in(line["object"]))
        asked.answered("unknown", *seen)

    async def _follow(self, wire: Wire) -> None:
        """Read one watch to its end."""
        left = self._chance.randint(1, LINES_MAX) if self._manner != "steady" else 1 << 30
        options = {"allowWatchBookmarks": "true"} if self._chance.random() < 0.5 else {}
        async with contextlib.aclosing(self._lines(wire, resourceVersion=str(self._position), **options)) as lines:
            async for line in lines:
                if line["type"] == "ERROR":
                    assert line["object"]["code"] == 410, line
                    self.expired += 1
                    self._close(last=False)
                    self._position = None
                    return
                self._take(line)
                left -= 1
                if left <= 0 and self._manner in ("restless", "away"):
                    break
                if left <= 0:
                    left = self._chance.randint(1, LINES_MAX)
                    await self._pause()
        self._close(last=False)
        if self._manner == "away":
            await self._pause()

    async def _pause(self) -> None:
        if not self._goal.done():
            await self._clock.sleep(self._chance.random() * PAUSE_SECONDS_MAX)

    async def _lines(self, wire: Wire, **options: str) -> AsyncGenerator[Any, None]:
        """Yield the lines of a watch until it ends or breaks."""
        params = {"watch": "true", **query_of(self._selection), **options}
        with contextlib.suppress(httpx2.TransportError):
            async with wire.http.stream("GET", MODELS, params=params, timeout=httpx2.Timeout(10.0, read=None)) as response:
                if response.status_code != 200:
                    assert response.status_code in (429, 500, 503, 504), await response.aread()
                    return
                async for line in response.aiter_lines():
                    yield msgspec.json.decode(line)

    def _take(self, line: Any) -> None:
        obj, now = line["object"], self._recorder.now()
        if line["type"] == "BOOKMARK":
            delivery = Delivery("BOOKMARK", int(obj["metadata"]["resourceVersion"]), now)
        else:
            seen = seen_in(obj)
            delivery = Delivery(line["type"], seen.revision, now, seen)
        self._deliveries.append(delivery)
        self._position = delivery.revision
        self._moved.set()

    def _open(self, revision: int) -> None:
        self._start = self._position = revision
        self._deliveries = []
        self._moved.set()

    def _close(self, *, last: bool) -> None:
        """Write down the connection; the next one goes on where it ended."""
        if self._position is not None:
            self._recorder.watched(self._name, self._start, self._deliveries, self._selection, last=last)
            self._open(self._position)
