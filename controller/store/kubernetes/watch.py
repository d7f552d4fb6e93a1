"""A watch over the API of Kubernetes that outlives its connections.

In: a collection, a selection and the version to start after. Out: changes in order, without gaps and duplicates, or Expired. A server
ends every watch after some minutes and connections break; both are mended here, from the last version that was seen, and no caller
notices. Bookmarks are always asked for, so that this version stays young also where nothing happens.

Labels, names and namespaces are the server's to choose by: it tells of an object that starts or stops to match. Other fields no server
has to know, so their terms are asked here, against the set of objects that matched before; `store.py` lists them once as they were at the
start.

Source: Kubernetes API concepts, "Efficient detection of changes" and "Watch bookmarks".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from controller.store.base import Change
from controller.store.kubernetes.answers import error_of, item_of, read_event, version_of
from controller.store.kubernetes.client import Client, Lines
from controller.store.selecting import Selector
from controller.store.turn import turn
from rkfleet.clock import Clock
from rkfleet.errors import Expired, FleetError, Internal, ResourceExhausted, Unauthenticated, Unavailable
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref
from rkfleet.racing import run_until

__all__ = ["CONNECTION_SECONDS", "FieldFilter", "KubernetesWatch"]

CONNECTION_SECONDS: Final = 290  # Asked of the server for each connection; below the 300 s at which many balancers cut what is open.
LINES_AT_ONCE: Final = 100  # Read before other tasks get their turn: 1 ms, and some more for whoever decodes the objects.
SILENCE_GRACE_SECONDS: Final = 30.0  # A connection that outlives its end by so long is dead: the other machine went without a word.
RECONNECTS_MAX: Final = 8  # In a row, without a sign of life: about 20 s. Then the caller hears of it and may go on asking.
HEALTHY_SECONDS: Final = 1.0  # A connection that ended well after this long was a good one, although nothing happened on it.


class FieldFilter:
    """Which objects match terms over fields that the server was not asked about.

    Args:
        selector: Asks the terms.
        matching: Objects that match at the version where the watch starts.
    """

    def __init__(self, selector: Selector, matching: Iterable[Ref]) -> None:
        self._selector: Final = selector
        self._matching: Final = set(matching)

    def seen(self, change: Change) -> Change | None:
        """Return what the watch sees of a change, or None."""
        item = change.item
        if item is None:
            return change
        was, is_ = item.ref in self._matching, change.type != "DELETED" and self._selector.selects(item)
        if is_:
            self._matching.add(item.ref)
            return msgspec.structs.replace(change, type="MODIFIED" if was else "ADDED")
        self._matching.discard(item.ref)
        return msgspec.structs.replace(change, type="DELETED") if was else None


class KubernetesWatch:
    """See `controller.store.base.Watch`. `start` must have returned before anything else is called.

    Args:
        client: Opens connections.
        resource: What is watched.
        path: Its collection.
        query: Selectors, as the server understands them.
        resource_version: Where to start.
        bookmarks: Whether the caller wants them.
        filter: For terms that the server does not know; None for none.
        clock: For waits between connections.
        connection_seconds: How long the server is asked to keep each connection.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        path: str,
        query: dict[str, str],
        resource_version: str,
        *,
        bookmarks: bool,
        filter: FieldFilter | None,
        clock: Clock,
        connection_seconds: int = CONNECTION_SECONDS,
    ) -> None:
        self._client: Final = client
        self._resource: Final = resource
        self._path: Final = path
        self._query: Final = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(connection_seconds)}
        self._seen_version = resource_version
        self._bookmarks: Final = bookmarks
        self._filter: Final = filter
        self._clock: Final = clock
        self._silence_seconds_max: Final = connection_seconds + SILENCE_GRACE_SECONDS
        self._lines: Lines | None = None
        self._opened_at = 0.0
        self._taken = 0  # Lines, ever.
        self._failures = 0  # Connections in a row that brought nothing.
        self._ready: Final[deque[Change]] = deque()
        self._closed: Final = asyncio.Event()

    async def start(self) -> None:
        """Open the first connection.

        Raises:
            FleetError: The server refuses, or cannot be reached.
        """
        query = {**self._query, "resourceVersion": self._seen_version}
        self._lines = await self._client.stream(self._path, query, silence_seconds_max=self._silence_seconds_max)
        self._opened_at = self._clock.monotonic()

    def __aiter__(self) -> KubernetesWatch:
        return self

    async def __anext__(self) -> Change:
        """Return the next change.

        Raises:
            Expired: What came after the last change is not known any more.
            Unavailable: The server cannot be reached again.
        """
        while not self._closed.is_set():
            if self._ready:
                return self._ready.popleft()
            if self._lines is None:
                await run_until(self._reconnect(), self._closed.wait())
            elif (line := await self._next_line(self._lines)) is not None:
                self._take(line)
                self._taken += 1
                if self._taken % LINES_AT_ONCE == 0:
                    await turn()
        self._drop()  # It may have come in the step in which the watch was closed.
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop; a waiting iteration ends."""
        self._closed.set()
        self._ready.clear()
        self._drop()

    async def _next_line(self, lines: Lines) -> bytes | None:
        """Return the next line, or None when the connection has ended, which is then gone."""
        try:
            line = await lines.next()
        except Unavailable as error:
            self._drop()
            self._failed(error)
            return None
        if line is None:
            self._drop()
            if self._clock.monotonic() - self._opened_at >= HEALTHY_SECONDS:
                self._failures = 0
            else:
                self._failed(Unavailable(f"{self._path}: the Kubernetes API ends every watch at once"))
        return line

    async def _reconnect(self) -> None:
        if self._failures:
            await self._clock.sleep(self._client.pause_seconds(self._failures, Unavailable("")))
        try:
            await self.start()
        except (ResourceExhausted, Unauthenticated, Unavailable) as error:
            self._failed(error)

    def _failed(self, error: FleetError) -> None:
        self._failures += 1
        if self._failures > RECONNECTS_MAX and not self._closed.is_set():
            raise error

    def _drop(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _take(self, line: bytes) -> None:
        event = read_event(line, self._resource)
        match event.type:
            case "ADDED" | "MODIFIED" | "DELETED":
                item = item_of(event.object, self._resource)
                self._put(Change(event.type, item.resource_version, item))
            case "BOOKMARK":
                version = version_of(event.object, self._resource)
                if version != self._seen_version:
                    self._put(Change("BOOKMARK", version))
            case "ERROR":
                self._drop()
                error = error_of(bytes(event.object))
                if isinstance(error, Expired):
                    raise error
                self._failed(error if isinstance(error, Unavailable) else Unavailable(f"{self._path}: {error.message}"))
                return
            case other:
                raise Internal(f"{self._path}: the Kubernetes API sent an event of type {other[:40]!r} in a watch")
        self._failures = 0

    def _put(self, change: Change) -> None:
        self._seen_version = change.resource_version
        if change.type == "BOOKMARK" and not self._bookmarks:
            return
        seen = change if self._filter is None else self._filter.seen(change)
        if seen is not None:
            self._ready.append(seen)
