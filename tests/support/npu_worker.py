"""Workers of the simulated NPU runtime: its libraries, model files, scripts, and how to ask a worker everything that it answers."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec

from agent.serving import listener
from agent.workers.backends import PROGRAM, ChildBackend
from agent.workers.base import Exit, WorkerSpec
from agent.workers.pipe import Adapter, NpuLoad
from agent.workers.rkllm.releases import Generation
from rkfleet.http1 import Connection
from rkfleet.kinds.board import Runtime
from tests.support.runtimes import RELEASES, model_file, runtime

__all__ = ["TEMPLATE", "Adapter", "Refused", "Reply", "Running", "backend", "exit_of_load", "model", "npu", "running", "spec_of"]

TEMPLATE = "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}<|assistant|>"


def model(directory: Path, **values: object) -> Path:
    """Write a model at a speed that no test waits for."""
    return model_file(directory / "model.rkllm", **values)


def npu(generation: Generation, directory: Path, *, template: str | None = None, **changes: Any) -> NpuLoad:
    """Return what a worker of this generation is told; a template's text is written to a file."""
    template_path = ""
    if template is not None:
        (directory / "template.jinja").write_text(template)
        template_path = str(directory / "template.jinja")
    return NpuLoad(
        **{
            "library": str(runtime(RELEASES[generation])),
            "generation": generation,
            "library_version": RELEASES[generation],
            "lock_path": str(directory / "npu.lock"),
            "template_path": template_path,
            **changes,
        }
    )


def backend(script: Path | None = None, options: Mapping[str, Any] | None = None) -> ChildBackend:
    """Return the backend.

    Args:
        script: What the library reads before each run, so that a test can change it meanwhile.
        options: Those of `tests.support.npu_child`, which then runs instead of the shipped program.
    """
    environ = {**os.environ, **({"RKLLM_SIMULATION": str(script)} if script else {})}
    runtime = Runtime(name="rkllm", version="simulated", backend="rkllm")
    program = PROGRAM if options is None else ("-m", "tests.support.npu_child", msgspec.json.encode(options).decode())
    return ChildBackend(runtime, environ=environ, new_api_key=lambda: secrets.token_hex(16), program=program)


def spec_of(model: Path, npu: NpuLoad, **changes: Any) -> WorkerSpec:
    spec = WorkerSpec(
        uid="u", namespace="default", name="chat-0", key="k", runtime="rkllm", model_path=str(model), context_tokens=2048, npu=npu
    )
    return msgspec.structs.replace(spec, **changes)


class Reply:
    """A whole answer."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        choices = [choice for event in events for choice in event.get("choices", ())]
        deltas = [choice.get("delta") or {"content": choice.get("text", "")} for choice in choices]
        self.text = "".join(delta.get("content", "") for delta in deltas)
        self.reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        self.finish_reason = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
        self.usage = next((event["usage"] for event in events if event.get("usage")), {})
        self.error = next((event["error"] for event in events if "error" in event), None)
        self.ignored = events[0].get("ignored", []) if events else []
        self.calls: dict[int, dict[str, str]] = {}
        for delta in deltas:
            for part in delta.get("tool_calls", ()):
                call = self.calls.setdefault(part["index"], {"name": "", "arguments": ""})
                for name, value in part["function"].items():
                    call[name] += value

    @property
    def cached_tokens(self) -> int:
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


class Refused(Exception):
    """The worker answered with a status."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status}: {error['message']}")
        self.status = status
        self.error = error


class Running:
    """A loaded worker and how to ask it."""

    def __init__(self, worker: Any, endpoint: str, api_key: str, lines: list[str]) -> None:
        self.worker = worker
        self.endpoint = endpoint
        self.api_key = api_key
        self.lines = lines
        self.supports: AbstractSet[str] = frozenset()

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        """Return the answer: a `Reply` for a stream, else what the JSON says.

        Raises:
            Refused: The status is not 200.
        """
        host, _, port = self.endpoint.removeprefix("http://").rpartition(":")
        connection = await Connection.open(host, int(port), seconds_max=2)
        sent = {"Authorization": f"Bearer {self.api_key}", "Connection": "close", **(headers or {})}
        try:
            head = await connection.ask(
                "POST", path, [(name.encode(), value.encode()) for name, value in sent.items()], msgspec.json.encode(body), seconds_max=30
            )
            data = b"".join([piece async for piece in connection.pieces(seconds_max=30)])
        finally:
            connection.close()
        if head.status != 200:
            raise Refused(head.status, msgspec.json.decode(data)["error"])
        if head.headers[b"content-type"] == b"application/json":
            return msgspec.json.decode(data)
        events = [one.removeprefix(b"data: ") for one in data.split(b"\n\n") if one and one != b"data: [DONE]"]
        return Reply([msgspec.json.decode(one) for one in events])

    async def chat(self, *messages: Any, **fields: Any) -> Reply:
        """Ask with messages, texts of a user by themselves."""
        whole = [{"role": "user", "content": one} if isinstance(one, str) else one for one in messages]
        return await self.post("/v1/chat/completions", {"messages": whole, **fields})

    async def complete(self, prompt: Any, **fields: Any) -> Reply:
        return await self.post("/v1/completions", {"prompt": prompt, **fields})

    @contextlib.asynccontextmanager
    async def stream(self, prompt: str, **fields: Any) -> AsyncIterator[listener.Reply]:
        """Ask for a chat; the end of the block closes the connection."""
        body = msgspec.json.encode({"messages": [{"role": "user", "content": prompt}], **fields})
        async with listener.ask(self.endpoint, self.api_key, "/v1/chat/completions", body) as reply:
            yield reply


@contextlib.asynccontextmanager
async def running(spec: WorkerSpec, script: Path | None = None, options: Mapping[str, Any] | None = None) -> AsyncIterator[Running]:
    """Load a worker for the block; `options` are those of `tests.support.npu_child`, which then runs instead."""
    lines: list[str] = []
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
        worker = await backend(script, options).start(spec, tasks, lambda: None, lines.append)
        try:
            listening = await worker.loaded()
            assert listening is not None, (await worker.exited()).message
            yield Running(worker, listening.endpoint, listening.api_key, lines)
        finally:
            worker.kill(None, "the test is over")


async def exit_of_load(spec: WorkerSpec, script: Path | None = None) -> Exit:
    """Start a worker that cannot load, and return why."""
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
        worker = await backend(script).start(spec, tasks, lambda: None, lambda _line: None)
        assert await worker.loaded() is None
        return await worker.exited()
