"""A board's APIs over a scripted worker, as each kind of client meets them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from agent.serving.app import Serving
from agent.serving.demand import Demand
from agent.serving.routes import Route, Routes
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import ASGIApp, serve_asgi
from tests.support.scripted_worker import ScriptedWorker, chunk
from tests.support.serving import Clients

SECONDS = 20.0
ASK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
LAST = chunk("", finish_reason="stop", usage=USAGE)


def progress(total: int = 10, done: int = 0, cache: int = 0, **more: object) -> dict[str, object]:
    """Return an event from before the first output."""
    return chunk(prompt_progress={"total": total, "cache": cache, "processed": done, "time_ms": 0}, **more)


class Demands:
    """What a board's loop was told; `when_wanted` is what it does then."""

    def __init__(self, when_wanted: Callable[[], None] = lambda: None) -> None:
        self.told: list[tuple[object, ...]] = []
        self._when_wanted = when_wanted

    def want(self, uid: str) -> None:
        self.told.append(("want", uid))
        self._when_wanted()

    def touch(self, uid: str, keep_seconds: float | None) -> None:
        self.told.append(("touch", uid, keep_seconds))

    def unload(self, uid: str) -> None:
        self.told.append(("unload", uid))


class Board(Clients):
    """One board with the replica `default/m-0`, uid `u`, served as `m` by a scripted worker."""

    def __init__(self, worker: ScriptedWorker, demand: Demand | None, **route: Any) -> None:
        super().__init__()
        self.worker = worker
        self.routes = Routes()
        self.metrics = Metrics("agent")
        self.clock = SystemClock()
        self.serving = Serving(self.routes, self.metrics, self.clock, demand=demand)
        self.route(**route)

    def route(self, **changes: Any) -> None:
        base = {"uid": "u", "namespace": "default", "name": "m-0", "served_model_name": "m", "board": "b", "variant": "v"}
        self.routes.replace((Route(**{**base, "endpoint": self.worker.endpoint, "api_key": "k", **changes}),))

    async def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=SECONDS) as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(self.url + path, json=body, headers=named)

    async def answered(self, asking: asyncio.Future[Any], *events: dict[str, object]) -> Any:
        """Let the worker say these events and the end, and return what the client got."""
        for event in events:
            await self.worker.say(event)
        await self.worker.say(LAST)
        await self.worker.say(b"[DONE]")
        return await asking


@contextlib.asynccontextmanager
async def scripted(
    demand: Demand | None = None, door: Callable[[Serving], ASGIApp] = lambda serving: serving, **route: Any
) -> AsyncIterator[Board]:
    """Serve; `door` stands before the application."""
    async with asyncio.timeout(SECONDS), ScriptedWorker().run() as worker:
        board = Board(worker, demand, **route)
        async with serve_asgi(door(board.serving), "127.0.0.1", 0, shutdown_seconds=0.1) as listener:
            board.url = listener.url
            async with board.closing:
                yield board
