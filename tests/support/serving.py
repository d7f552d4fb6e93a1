"""A board's real workers and OpenAI endpoint, in a loop that outlives single tests: loading a model for each would cost minutes."""

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import ollama
import openai

from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.workers import backends
from agent.workers.base import WorkerSpec, WorkerState
from agent.workers.supervisor import Limits, Supervisor
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import serve_asgi

ROUTE = {"served_model_name": "smollm2", "context_tokens": 2048, "runtime": "llamacpp"}
WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.01


def llamacpp() -> backends.ChildBackend:
    """Return the backend of the real runtime."""
    backend = backends.llamacpp(environ=os.environ, new_api_key=lambda: secrets.token_hex(16))
    assert backend is not None, "xllamacpp is not installed"
    return backend


def spec_of(model: Path, **changes: Any) -> WorkerSpec:
    """Return a spec of one worker for `model`."""
    spec = WorkerSpec(
        uid="uid-0", namespace="default", name="chat-0", key="key-0", runtime="llamacpp", model_path=str(model), context_tokens=2048
    )
    return msgspec.structs.replace(spec, **changes)


async def until(level: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Wait until `level` is truthy, or fail."""
    async with asyncio.timeout(seconds):
        while not level():
            await SystemClock().sleep(LOOK_SECONDS)


def undisturbed(measure: Callable[[], float], limit: float) -> float:
    """Return the first of three measurements that is below the limit, else the shortest: other programs use the cores too."""
    tries: list[float] = []
    while len(tries) < 3 and (not tries or tries[-1] >= limit):
        tries.append(measure())
    return min(tries)


class Clients:
    """The client packages of a board's APIs; they are closed with it."""

    url = ""

    def __init__(self) -> None:
        self.closing = contextlib.AsyncExitStack()

    def openai(self, path: str = "", **more: Any) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.url}{path}/v1", api_key="any", max_retries=0, **more)
        self.closing.push_async_callback(client.close)
        return client

    def ollama(self) -> ollama.AsyncClient:
        client = ollama.AsyncClient(host=self.url)
        self.closing.push_async_callback(client.close)
        return client


class BoardServing(Clients):
    """Supervisor and serving application of one board, as `agent/app.py` wires them."""

    def __init__(self, limits: Limits = Limits()) -> None:
        super().__init__()
        self.metrics = Metrics("agent")
        self.routes = Routes()
        self.serving = Serving(self.routes, self.metrics, SystemClock())
        self.changes = 0
        self.supervisor = Supervisor(
            [llamacpp()], clock=SystemClock(), random=random.Random(1), metrics=self.metrics, on_change=self._changed, limits=limits
        )
        self.route_changes: dict[str, dict[str, Any]] = {}

    def _changed(self) -> None:
        self.changes += 1
        self.publish()

    def state(self, uid: str = "uid-0") -> WorkerState | None:
        return self.supervisor.states().get(uid)

    def publish(self) -> None:
        """Make routes of the workers' states, as the loop does."""
        self.routes.replace(
            tuple(
                Route(
                    uid=state.uid,
                    namespace=state.namespace,
                    name=state.name,
                    board="cpu-1",
                    variant="any-q4",
                    api_key=state.api_key,
                    **{"endpoint": state.endpoint, **ROUTE, **self.route_changes.get(state.uid, {})},
                )
                for state in self.supervisor.states().values()
            )
        )

    def change_route(self, uid: str = "uid-0", **changes: Any) -> None:
        """Change what the route of a replica says, until `changes` is empty again."""
        self.route_changes[uid] = changes
        self.publish()

    async def ready(self, uid: str = "uid-0") -> WorkerState:
        await until(lambda: (state := self.state(uid)) and state.phase == "Ready")
        state = self.state(uid)
        assert state is not None
        return state

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["BoardServing"]:
        async with asyncio.TaskGroup() as tasks, serve_asgi(self.serving, "127.0.0.1", 0) as listener:
            self.url = listener.url
            running = tasks.create_task(self.supervisor.run())
            try:
                async with self.closing:
                    yield self
            finally:
                running.cancel()


class Stage:
    """Something asynchronous that stays open between the steps of several tests, all in one event loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        """Run one step; what lives in the loop goes on meanwhile."""
        return self._runner.run(step)


@contextlib.contextmanager
def on_stage(opened: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> Iterator[tuple[Stage, Any]]:
    """Open a context in a loop of its own and keep it open while the block runs."""
    with asyncio.Runner() as runner:
        done = asyncio.Event()
        value: list[Any] = []

        async def hold(ready: asyncio.Event) -> None:
            try:
                async with opened() as entered:
                    value.append(entered)
                    ready.set()
                    await done.wait()
            finally:
                ready.set()

        async def enter() -> asyncio.Task[None]:
            ready = asyncio.Event()
            task = asyncio.ensure_future(hold(ready))
            await ready.wait()
            if task.done():
                task.result()
            return task

        async def leave(task: Awaitable[None]) -> None:
            done.set()
            await task

        holding = runner.run(enter())
        try:
            yield Stage(runner), value[0]
        finally:
            runner.run(leave(holding))
