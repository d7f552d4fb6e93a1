"""Agents that kill themselves in the middle of a step: `python -m tests.support.killed_agent DATA_DIR LOG`.

One process imports everything and forks an agent for each line on its standard input (`{"port", "step", "occurrence"}`), says its pid, and
when it is gone its status. The agent is the product's, with a runtime that reads the model file and answers with its digest. What it does
is counted by name: calls to the disk, system calls on paths below the data directory (audit events of Python), and the calls in `CALLS`,
each before and after. It ends by SIGKILL in the step that it is armed for: at its birth, or later by SIGUSR1 and the file `arm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent import app
from agent.artifacts.cache import Cache
from agent.artifacts.chunks import Partial
from agent.artifacts.fetch import Fetcher
from agent.board.facts import Overrides
from agent.board.sensors import MachineSensors
from agent.config import Config
from agent.fetching import Bytes
from agent.ledger import Ledger
from agent.loop import Loop
from agent.parts import Parts
from agent.reports import Reports
from agent.serving.routes import Routes
from agent.session.runner import SessionRunner
from agent.workers.base import Exit, Listener, WorkerSpec
from agent.workers.loopback import Answer, Request, listen
from agent.workers.supervisor import Supervisor
from rkfleet.clock import SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.identity import Identity, ensure_identity
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason
from rkfleet.process import run_until_stopped, setup_logging
from tests.support.scripted_worker import chunk

BOARD = "cpu-1"
CHUNK_BYTES = 4096
LIMIT_BYTES = 25_000  # Two models of MODEL_BYTES: the third evicts the first.
MODEL_BYTES = 10_000
CALLS = (
    (Bytes, "start_fetch"), (Bytes, "start_verification"), (Cache, "make_room"), (Cache, "verify"), (Cache, "adopt"), (Cache, "_evict"),
    (Cache, "refer"), (Partial, "write"), (Partial, "_commit"), (Partial, "digest"), (Fetcher, "_fetch_chunk"), (Fetcher, "_admit"),
    (Ledger, "accept"), (Ledger, "_write"), (Loop, "_look"), (Reports, "publish"), (Routes, "replace"), (SessionRunner, "request_grant"),
    (SessionRunner, "_welcomed"), (Supervisor, "ensure"), (Supervisor, "stop"),
)  # fmt: skip
PATHS = {"ledger.json": "ledger", "ledger.prev.json": "earlier ledger", "ledger.json.new": "new ledger", "lock": "lock"}
AUDITED = {"open": 0, "os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.listdir": 0, "os.utime": 0, "os.truncate": 0}


class Command(msgspec.Struct):
    """One agent to run; without a step nothing kills it."""

    port: int
    step: str = ""
    occurrence: int = 1


class Steps:
    """What the agent does, by name."""

    def __init__(self, data_dir: Path, log: int) -> None:
        self._data_dir = data_dir
        self._log = log
        self.arm("", 1)

    def arm(self, step: str, occurrence: int) -> None:
        """Die at the n-th time of a step, counted from now."""
        self._counts = Counter[str]()
        self._step, self._occurrence = step, occurrence

    def take(self, step: str) -> None:
        """Do not return from the step that it is armed for."""
        os.write(self._log, step.encode() + b"\n")
        if self.is_last(step):
            os.kill(os.getpid(), signal.SIGKILL)

    def is_last(self, step: str) -> bool:
        self._counts[step] += 1
        return step == self._step and self._counts[step] == self._occurrence

    def what(self, path: object) -> str:
        """Return what a path or an open file is to the agent; empty if it is none of its own."""
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                path = Path(f"/proc/self/fd/{path}").readlink()
        if not isinstance(path, str | Path) or not Path(path).is_relative_to(self._data_dir):
            return ""
        parts = Path(path).relative_to(self._data_dir).parts
        if parts[:1] == ("identity",):
            return ""
        if len(parts) > 1 and parts[0] == "partial":
            return "record" if parts[1].endswith(".chunks") else "partial"
        if len(parts) > 2:
            return "artifact"
        return PATHS.get("/".join(parts), "/".join(parts) or "data directory")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and (what := self.what(arguments[AUDITED[event]])):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            self.take(f"{event}{' to write' if writes else ''} {what}")

    def wrap(self, owner: type, name: str) -> None:
        """Make a step of the beginning and of the end of a method."""
        call: Callable[..., Any] = getattr(owner, name)
        step = f"{owner.__name__}.{name}"

        @functools.wraps(call)
        def sync(*args: Any, **kwargs: Any) -> Any:
            self.take(f"before {step}")
            result = call(*args, **kwargs)
            self.take(f"after {step}")
            return result

        @functools.wraps(call)
        async def later(*args: Any, **kwargs: Any) -> Any:
            self.take(f"before {step}")
            result = await call(*args, **kwargs)
            self.take(f"after {step}")
            return result

        setattr(owner, name, later if inspect.iscoroutinefunction(call) else sync)


class DyingDisk(SystemDisk):
    """Every call is a step; a write may end in its middle."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def write(self, descriptor: int, data: memoryview) -> int:
        what = self._steps.what(descriptor)
        if self._steps.is_last(f"half of write {what}"):
            super().write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self._steps._log, f"half of write {what}\n".encode())
        self._steps.take(f"before write {what}")
        taken = super().write(descriptor, data)
        self._steps.take(f"after write {what}")
        return taken

    def flush(self, descriptor: int) -> None:
        what = self._steps.what(descriptor)
        self._steps.take(f"before flush {what}")
        super().flush(descriptor)
        self._steps.take(f"after flush {what}")


class FileBackend:
    """Runs models whose answer is their digest."""

    runtime = Runtime(name="llamacpp", version="1", backend="llamacpp")

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    async def start(self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]) -> FileWorker:
        self._steps.take("before start of a worker")
        worker = FileWorker(spec, self._steps)
        tasks.create_task(worker.run())
        self._steps.take("after start of a worker")
        return worker


class FileWorker:
    """One of them."""

    pid = 0

    def __init__(self, spec: WorkerSpec, steps: Steps) -> None:
        self._steps = steps
        self._spec = spec
        self._loaded: asyncio.Future[Listener | None] = asyncio.get_running_loop().create_future()
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._stopped = asyncio.Event()
        self._digest = ""

    async def loaded(self) -> Listener | None:
        return await asyncio.shield(self._loaded)

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exited)

    def stop(self) -> None:
        self._stopped.set()

    def kill(self, reason: ExitReason | None, message: str) -> None:
        self._stopped.set()

    async def run(self) -> None:
        try:
            self._steps.take("before load")
            self._digest = hashlib.sha256(Path(self._spec.model_path).read_bytes()).hexdigest()
            async with listen(self._answer) as endpoint:
                self._loaded.set_result(Listener(endpoint=endpoint, api_key="key"))
                self._steps.take("after load")
                await self._stopped.wait()
                self._steps.take("before end of a worker")
        finally:
            if not self._loaded.done():
                self._loaded.set_result(None)
            self._exited.set_result(Exit(reason=None, message="stopped"))

    async def _answer(self, request: Request, answer: Answer) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        await answer.begin(200, b"text/event-stream")
        for event in (chunk(self._digest), chunk(finish_reason="stop"), {**chunk(), "choices": [], "usage": usage}):
            await answer.piece(b"data: " + msgspec.json.encode(event) + b"\n\n")
        await answer.piece(b"data: [DONE]\n\n")
        await answer.end()


def live(command: Command, data_dir: Path, log: Path, lifeline: int) -> None:
    """Be an agent until the end."""
    steps = Steps(data_dir, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    steps.arm(command.step, command.occurrence)
    for owner, name in CALLS:
        steps.wrap(owner, name)
    app.SystemDisk = lambda: DyingDisk(steps)  # type: ignore[misc,assignment]
    app.Fetcher = functools.partial(Fetcher, chunk_bytes=CHUNK_BYTES)  # type: ignore[misc,assignment]
    sys.addaudithook(steps.audit)

    async def body() -> None:
        def rearm() -> None:
            path = data_dir.parent / "arm"
            again = msgspec.json.decode(path.read_bytes(), type=Command)
            steps.arm(again.step, again.occurrence)
            path.unlink()

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, rearm)
        clock, jitter = SystemClock(), random.Random()
        backend = FileBackend(steps)
        sensors = MachineSensors(Path("/"), data_dir, Overrides(memory_bytes=4 << 30), (backend.runtime,))

        async def identity() -> Identity:
            return await ensure_identity(data_dir / "identity", None, clock, jitter)

        config = Config(
            data_dir=data_dir, controller="", name=BOARD, ops_port=command.port, serving_port=0, advertise_host="127.0.0.1",
            artifact_limit_bytes=LIMIT_BYTES,
        )  # fmt: skip
        agent = app.Agent(config, Parts(backends=(backend,), sensors=sensors, identity=identity), clock=clock, jitter=jitter)
        await run_until_stopped(agent.run(), lifeline)

    asyncio.run(body())


def main() -> None:
    data_dir, log = Path(sys.argv[1]), Path(sys.argv[2])
    setup_logging("warning")
    for line in sys.stdin:
        command = msgspec.json.decode(line, type=Command)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            status = 1
            try:
                live(command, data_dir, log, reader)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(reader)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        os.close(writer)


if __name__ == "__main__":
    main()
