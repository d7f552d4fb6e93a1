"""Logs from end to end in one event loop: an API over the store of a session side, and boards whose journals a test writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.journal import Journals
from agent.logs import BoardLogs
from controller.api.namespaces import ensure_namespace
from rkfleet import metric_names
from rkfleet.clock import SystemClock
from rkfleet.identity import Identity
from tests.support.api import RunningApi, new_id, running_api
from tests.support.sessions import RunningBoard, SessionWorld, running_board, session_world, until

API = "/apis/rkfleet.dev/v1alpha1"
REPLICA_LOG = f"{API}/namespaces/default/replicas/m-0/log"
BOARD_LOG = f"{API}/boards/b-1/log"


@dataclass
class LogScene:
    """A session side, its API, and the journals of board `b-1`."""

    sessions: SessionWorld
    api: RunningApi
    identity: Identity
    journals: Journals
    uid: str

    @contextlib.asynccontextmanager
    async def board(self, **options: Any) -> AsyncIterator[RunningBoard]:
        """Have the board in session."""
        logs = options.pop("logs", BoardLogs(self.journals, SystemClock()))
        async with running_board(self.identity, logs=logs, **options) as board:
            await until(lambda: board.number)
            yield board

    async def lines(self, path: str = REPLICA_LOG, **query: str) -> list[str]:
        """Return a whole log."""
        answer = await self.api.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        return answer.text.splitlines()

    async def refusal(self, path: str = REPLICA_LOG, **query: str) -> tuple[int, str]:
        """Return status and sentence of a refusal."""
        answer = await self.api.client.get(path, params=query)
        assert answer.json()["kind"] == "Status"
        return answer.status_code, answer.json()["message"]

    @contextlib.asynccontextmanager
    async def following(self, path: str = REPLICA_LOG, **query: str) -> AsyncIterator[Callable[[], Any]]:
        """Follow a log; what is given returns the next line, or None at the end."""
        async with self.api.client.stream("GET", path, params={"follow": "true", **query}) as answer:
            assert answer.status_code == 200, await answer.aread()
            lines = answer.aiter_lines()

            async def next_line() -> str | None:
                async with asyncio.timeout(10):
                    return await anext(lines, None)

            yield next_line

    def write(self, *texts: str, run: bool = False) -> None:
        if run or self.journals.find(self.uid) is None:
            self.journals.begin_run(self.uid)
        for text in texts:
            self.journals.write(self.uid, text)

    @property
    def open_streams(self) -> float:
        return _sample(self.api, "rkfleet_log_streams")

    @property
    def dropped(self) -> float:
        return _sample(self.api, "rkfleet_log_lines_dropped_total")

    def sent(self, message: str) -> float:
        counter = self.sessions.metrics.counter(metric_names.SESSION_MESSAGES, direction="sent", message=message)
        return float(counter._value.get())


def _sample(api: RunningApi, name: str) -> float:
    line = next(line for line in api.metrics.text().decode().splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


@contextlib.asynccontextmanager
async def log_scene(directory: Path, **api_options: Any) -> AsyncIterator[LogScene]:
    """Run it; the board is not in session yet."""
    async with session_world(directory / "sessions") as sessions:
        await ensure_namespace(sessions.store, "default", clock=SystemClock(), ids=new_id)
        options = {"open_log": sessions.hub.open_log, **api_options}
        async with running_api(directory / "api", wrap=lambda _: sessions.store, **options) as api:
            identity = await sessions.join("b-1")
            uid = await sessions.create_replica("m-0", "b-1")
            yield LogScene(sessions, api, identity, Journals(SystemClock()), uid)
