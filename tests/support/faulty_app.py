"""Faults around a real ASGI app: requests that are answered before they reach it, and a record of all that came."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: str


class FaultyApp:
    """Answers with what `refuse` lined up for a method, then lets requests through.

    Attributes:
        asked: Every request that came, refused or not.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._refusals: dict[str, deque[tuple[int, str, dict[str, str]]]] = {}
        self._app: ASGIApp | None = None

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the app with the faults."""
        self._app = app
        return self

    def refuse(self, method: str, status: int, reason: str, **headers: str) -> None:
        """Answer one request of the method with a Status."""
        self._refusals.setdefault(method, deque()).append((status, reason, headers))

    def count(self, method: str, word: str = "") -> int:
        """Return how many requests of the method had the word in path or query."""
        return sum(one.method == method and word in f"{one.path}?{one.query}" for one in self.asked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        self.asked.append(Asked(method, scope["path"], scope["query_string"].decode()))
        if not self._refusals.get(method):
            await self._app(scope, receive, send)
            return
        code, reason, headers = self._refusals[method].popleft()
        body = msgspec.json.encode(
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "no"}
        )
        told = [
            (b"content-type", b"application/json"),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ]
        await send({"type": "http.response.start", "status": code, "headers": told})
        await send({"type": "http.response.body", "body": body})
