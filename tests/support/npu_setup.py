"""What a test of one NPU worker starts from: where its files are, how its worker is loaded, what the library is scripted to do."""

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.workers.base import Exit, WorkerSpec
from agent.workers.rkllm.releases import Generation
from tests.support import npu_worker
from tests.support.npu_worker import Refused, Reply, Running

__all__ = ["CHATML", "WEATHER", "Setup", "floats", "refused"]

CHATML = "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Setup:
    """Where a test's model, script and lock are, and how its worker is loaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "script"
        self.script.write_text("")

    def spec(self, generation: Generation = "G4", *, model: dict[str, Any] | None = None, **changes: Any) -> WorkerSpec:
        ours = {name: changes.pop(name) for name in ("context_tokens", "max_output_tokens") if name in changes}
        return npu_worker.spec_of(
            npu_worker.model(self.directory, **{"ttft_ms": 1, "tokens_per_s": 5000, **(model or {})}),
            npu_worker.npu(generation, self.directory, **changes),
            **{"max_output_tokens": 500, **ours},
        )

    def run(self, spec: WorkerSpec, step: Callable[[Running], Awaitable[Any]], options: dict[str, Any] | None = None) -> Any:
        """Load a worker, take a step with it and return what that returns."""

        async def loaded() -> Any:
            async with npu_worker.running(spec, self.script, options) as running:
                return await step(running)

        return asyncio.run(loaded())

    def chat(self, spec: WorkerSpec, *messages: Any, **fields: Any) -> Reply:
        return self.run(spec, lambda running: running.chat(*messages, **fields))  # type: ignore[no-any-return]

    def exit(self, spec: WorkerSpec) -> Exit:
        return asyncio.run(npu_worker.exit_of_load(spec, self.script))

    def says(self, **script: object) -> None:
        """Change what the library does from the next run on."""
        self.script.write_text("".join(f"{name} {value}\n" for name, value in script.items()))


async def refused(step: Awaitable[Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        await step
    return caught.value


def floats(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
