"""Watches on the wire: a stream of JSON lines that starts where the client says and ends by itself.

In: read options, a view, the store. Out: a response that sends what exists (when asked), then every change in commit order, bookmarks,
and one ERROR line when the client fell behind what the store still has. The stream ends when the client leaves, its time is over, or the
server stops. A client that reads slowly holds its own buffer in the store and nothing else.

Source: Kubernetes API concepts, "Efficient detection of changes"; KEP-3157 for initial events.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from controller.api.errors import status_of
from controller.api.paths import Target
from controller.api.query import ReadOptions
from controller.api.responses import COMMON_HEADERS
from controller.api.scope import token_lapses
from controller.api.streams import body, client_leaves
from controller.api.views import View
from controller.store.base import Change, Page, Store, Watch
from rkfleet.clock import give_way
from rkfleet.errors import Expired, FleetError
from rkfleet.racing import until_first

__all__ = ["WatchResponse", "open_watch"]

BOOKMARK_SECONDS: Final = 60.0  # Kubernetes' own rhythm; clients take silence beyond it for a broken connection.
LINES_AT_ONCE: Final = 50  # Of what exists, sent without a pause: about 2 ms as tables, less as objects.


async def open_watch(store: Store, target: Target, options: ReadOptions, view: View, stopping: asyncio.Event) -> Response:
    """Return the response that streams a watch.

    Raises:
        FleetError: The store cannot begin; too old a version is not among them, it is told inside the stream.
    """
    resource = target.kind.resource.name
    start = Page((), options.resource_version)
    if not options.resource_version or options.initial_events:
        start = await store.list(resource, options.selection)
    version = start.resource_version
    try:
        watch: Watch | Expired = await store.watch(resource, options.selection, resource_version=version, bookmarks=options.bookmarks)
    except Expired as error:
        watch = error
    return WatchResponse(watch, start, options, view, stopping)


class WatchResponse(Response):
    """Sends the lines of one watch; made by `open_watch`."""

    media_type = "application/json"

    def __init__(self, watch: Watch | Expired, start: Page, options: ReadOptions, view: View, stopping: asyncio.Event) -> None:
        super().__init__(None, 200, dict(COMMON_HEADERS))
        del self.headers["content-length"]
        self._watch: Final = watch
        self._existing = start.items
        self._start_version: Final = start.resource_version
        self._seen_version = ""
        self._options: Final = options
        self._view: Final = view
        self._stopping: Final = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the first of: an error, the client leaves, the time is over, the token ends, the server stops."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send(body(b""))  # The head leaves now: a client waits for it before it believes in the watch.
            pump, leaves = self._pump(send), client_leaves(receive)
            time_is_over = self._view.clock.sleep(self._options.timeout_seconds)
            ended = await until_first(pump, leaves, time_is_over, self._stopping.wait(), token_lapses(scope), self._keep_alive(send))
            if not ended & {pump, leaves} and self._options.bookmarks and self._seen_version:
                await send(body(self._view.bookmark(self._seen_version)))
            if leaves not in ended:
                await send(body(b"", more=False))
        finally:
            if not isinstance(self._watch, Expired):
                await self._watch.aclose()

    async def _pump(self, send: Send) -> None:
        if isinstance(self._watch, Expired):
            await send(body(_error_line(self._watch)))
            return
        for start in range(0, len(self._existing), LINES_AT_ONCE):
            changes = [Change("ADDED", item.resource_version, item) for item in self._existing[start : start + LINES_AT_ONCE]]
            lines = [self._view.change(change, first=start + index == 0) for index, change in enumerate(changes)]
            await send(body(b"".join(lines)))
            await give_way()
        first = not self._existing
        self._existing = ()
        self._seen_version = self._start_version
        if self._options.initial_events:
            await send(body(self._view.bookmark(self._seen_version, initial_events_end=True)))
        try:
            async for change in self._watch:
                bookmark = change.type == "BOOKMARK"
                await send(body(self._view.bookmark(change.resource_version) if bookmark else self._view.change(change, first=first)))
                self._seen_version = change.resource_version
                first = first and bookmark
        except FleetError as error:
            await send(body(_error_line(error)))

    async def _keep_alive(self, send: Send) -> None:
        """Send a bookmark of what was sent last, again and again; nothing where none were asked for."""
        while True:
            await self._view.clock.sleep(BOOKMARK_SECONDS)
            if self._options.bookmarks and self._seen_version:
                await send(body(self._view.bookmark(self._seen_version)))


def _error_line(error: FleetError) -> bytes:
    return msgspec.json.encode({"type": "ERROR", "object": status_of(error)}) + b"\n"
