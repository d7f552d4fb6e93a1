"""The serving application in front of real workers of the simulated NPU runtime, without a loop, a ledger or a registry between them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.workers.base import WorkerSpec
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import serve_asgi
from tests.support import npu_worker

__all__ = ["NpuServing", "npu_serving"]


class NpuServing:
    """A board with one loaded worker for each served model name."""

    def __init__(self, url: str, client: httpx2.AsyncClient, workers: Mapping[str, npu_worker.Running]) -> None:
        self.url = url
        self.client = client
        self.workers = workers

    async def post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        return await self.client.post(path, json=body)


@contextlib.asynccontextmanager
async def npu_serving(
    specs: Mapping[str, WorkerSpec], script: Path | None = None, routes: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncIterator[NpuServing]:
    """Load a worker for each spec and serve them by their names.

    Args:
        specs: By served model name.
        script: What the library reads before each run.
        routes: Further facts of a route, by the same names.
    """
    async with contextlib.AsyncExitStack() as stack:
        table, workers = Routes(), {}
        made = []
        for name, spec in specs.items():
            worker = workers[name] = await stack.enter_async_context(npu_worker.running(spec, script, {}))
            facts = {
                "uid": f"uid-{name}", "namespace": "default", "name": f"{name}-0", "served_model_name": name, "runtime": "rkllm",
                "endpoint": worker.endpoint, "api_key": worker.api_key, "context_tokens": spec.context_tokens,
                "max_output_tokens": spec.max_output_tokens, "images": True, **(routes or {}).get(name, {}),
            }  # fmt: skip
            made.append(msgspec.convert(facts, Route))
        table.replace(tuple(made))
        serving = Serving(table, Metrics("agent"), SystemClock())
        listener = await stack.enter_async_context(serve_asgi(serving, "127.0.0.1", 0))
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=listener.url, trust_env=False, verify=False, timeout=30))
        yield NpuServing(listener.url, client, workers)
