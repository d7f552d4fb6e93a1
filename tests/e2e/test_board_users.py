"""Many users of one board while everything fails that can: every request has one outcome, nobody reads another's words, nothing is left.

The shipped agent as a process, two models on the simulated NPU with two releases of its library, one on the CPU. `make soak-board-users`
plays it for SECONDS, from SEED on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rkfleet.api_keys import key_line
from rkfleet.assignment import AssignedFile, ServingParameters
from rkfleet.clock import SystemClock
from rkfleet.sample import SMOLLM2
from tests.support.agents import BoardScene, RunningAgent, board_scene, is_alive, running_agent
from tests.support.board_users import Tally, User
from tests.support.runtimes import keys, runtime
from tests.support.sessions import until

pytestmark = [pytest.mark.model, pytest.mark.processes]

SEED = int(os.environ.get("SEED", "20261125"))
SECONDS = float(os.environ.get("SECONDS", "3"))
USERS = int(os.environ.get("USERS", "10"))
ANSWERS_TELLING = 100  # Of so many some repeat their user's own secret, about one in ten.
TENANTS = ("ada", "bob", "cleo", "dan", "eve")
ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests" / "support" / "rknn"

CLOCK = SystemClock()
WORKER_END_SECONDS = 2.0
PAUSE_SECONDS = (0.1, 0.5)  # between two strokes
RSS_GROWTH_BYTES_MAX = 16 << 20  # Of the agent, from the first quarter of a campaign to its end: pools and buffers, no slope.
FDS_MORE_MAX = 4  # Sockets that the kernel closes a moment later.
CACHE_BYTES = 1 << 20

# What the library is told, each for a stroke.
SCRIPTS: tuple[dict[str, Any], ...] = (
    {"error_at": 3}, {"crash_at": 2}, {"run_code": -1}, {"clear_code": -1}, {"abort_ms": 60}, {"late_results": 3}, {"split_utf8": 1},
    {"null_text": 1}, {"token_lines": 20}, {"matmul_failures": 2}, {"load_cache_code": -1}, {"exit_at": 4}, {"init_code": -1},
    {"tools_code": -1}, {"size_code": -1}, {"init_crash": 1},
)  # fmt: skip
ALWAYS: dict[str, Any] = {"run_times": 1}


class Board:
    """The board, its models and what happens to it."""

    def __init__(self, root: Path, scene: BoardScene, chance: random.Random) -> None:
        self.root = root
        self.scene = scene
        self.chance = chance
        self.script = root / "script"
        self.keys = {tenant: hashlib.sha256(tenant.encode()).hexdigest() for tenant in TENANTS}
        self.keys_file = root / "keys"
        self.keys_file.write_text("".join(key_line(tenant, key) for tenant, key in self.keys.items()))
        self.strokes: list[str] = []

    def says(self, **script: Any) -> None:
        """Have the library do this from its next call on; it never reads half of a script."""
        new = self.root / "script.new"
        new.write_text(keys(**{**ALWAYS, **script}))
        new.replace(self.script)

    async def models(self) -> tuple[str, ...]:
        """Assign three models and return the names that they are served by."""
        weights = {name: self._npu_files(name) for name in ("eyes", "sleepy")}
        async with self.scene.registry.client() as client:
            for files in weights.values():
                for file, body in files:
                    await client.push_blob(f"default/{SMOLLM2.model}", file.digest, body)
        npu = {"runtime": "rkllm", "dtype": "w8a8", "memory_bytes": 200 << 20}
        serving = ServingParameters(context_tokens=512, max_queued=6, prompt_cache_bytes=CACHE_BYTES, runtime_version="<1.3")
        await self.scene.assign("eyes", served_model_name="eyes", files=tuple(file for file, _ in weights["eyes"]), serving=serving, **npu)
        asleep = msgspec.structs.replace(serving, load="OnDemand", idle_unload_seconds=1, runtime_version=">=1.3")
        await self.scene.assign("sleepy", served_model_name="sleepy", files=(weights["sleepy"][0][0],), serving=asleep, **npu)
        await self.scene.assign("chat", serving=ServingParameters(context_tokens=512, max_concurrent=2, max_queued=6))
        return ("eyes", "sleepy", "chat")

    def _npu_files(self, name: str) -> list[tuple[AssignedFile, bytes]]:
        model = "RKLLMFAKE\n" + keys(ttft_ms=2, tokens_per_s=400, memory_mb=100, reply="echo", init_ms=20)
        config = {"vision": {"imageSize": [56, 28]}}
        bodies = (
            (f"{name}.rkllm", "weight", f"{model}# {name}\n".encode()),
            ("eyes.rknn", "encoder", msgspec.json.encode({"tokens": 4, "size": 64})),
            ("config.json", "config", msgspec.json.encode(config)),
            ("law", "adapter", b"RKLLMFAKE\n"),
        )
        return [
            (AssignedFile(path=path, digest=f"sha256:{hashlib.sha256(body).hexdigest()}", size_bytes=len(body), role=role), body)
            for path, role, body in bodies
        ]

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[RunningAgent]:
        libraries = [word for version in ("1.2.3", "1.3.0") for word in ("--runtime-library", str(runtime(version)))]
        environ = {
            "RKLLM_SIMULATION": str(self.script), "PYTHONPATH": f"{STAND_IN}:{ROOT}", "FAKE_RKNN_LOG": str(self.root / "rknn.log"),
        }  # fmt: skip
        options = ("--api-keys-file", str(self.keys_file), "--memory", "8Gi", "--log-level", "debug", *libraries)
        async with running_agent(self.scene.data_dir, *options, environ=environ) as agent:
            yield agent

    async def weather(self, agent: RunningAgent, stop: asyncio.Event) -> None:
        """Do something to the board again and again."""
        while not stop.is_set():
            await CLOCK.sleep(self.chance.uniform(*PAUSE_SECONDS))
            stroke = self.chance.choice(("kill", "pause", "unload", "script", "script", "script", "calm"))
            workers = sorted(agent.worker_pids())
            self.strokes.append(stroke)
            if stroke == "kill" and workers:
                _signal(self.chance.choice(workers), signal.SIGKILL)
            elif stroke == "pause" and workers:
                pid = self.chance.choice(workers)
                _signal(pid, signal.SIGSTOP)
                await CLOCK.sleep(self.chance.uniform(0.05, 0.4))
                _signal(pid, signal.SIGCONT)
            elif stroke == "unload":
                await agent.client.post("/api/generate", json={"model": "sleepy", "keep_alive": 0})
            elif stroke == "script":
                script = self.chance.choice(SCRIPTS)
                self.strokes[-1] = str(script)
                self.says(**script)
                await CLOCK.sleep(self.chance.uniform(0.05, 0.4))
                self.says()
        self.says()

    def npu_lock(self) -> Path:
        return self.scene.data_dir / "npu.lock"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def runs_of(log: Path) -> list[tuple[int, int]]:
    """Return when the NPU was used, as the libraries tell it, in nanoseconds of one clock."""
    found = re.findall(r"simulation: ran from (\d+) to (\d+) ns", log.read_text(errors="replace"))
    return sorted((int(first), int(last)) for first, last in found)


async def samples(agent: RunningAgent, name: str) -> dict[str, float]:
    """Return the samples of a metric by their labels."""
    text = (await agent.get("/metrics")).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{"))
    return {labels: float(value) for labels, _, value in lines}


async def play(board: Board, agent: RunningAgent, models: tuple[str, ...], seconds: float, look: Callable[[float], None]) -> Tally:
    """Have users ask for so long while the weather changes; `look` is called with the share of the time that is over."""
    tally, stop, calm = Tally(), asyncio.Event(), asyncio.Event()
    url = str(agent.client.base_url)
    async with asyncio.TaskGroup() as tasks:
        for number in range(USERS):
            tenant = TENANTS[number % len(TENANTS)]
            user = User(tenant, board.keys[tenant], models, random.Random(board.chance.random()), tally)
            tasks.create_task(user.run(url, stop))
        tasks.create_task(board.weather(agent, calm))
        for step in range(1, 21):
            await CLOCK.sleep(seconds / 20)
            look(step / 20)
        calm.set()
        stop.set()
    return tally


async def answers(agent: RunningAgent, model: str) -> bool:
    return (await agent.chat(model)).status_code == 200


async def settled(agent: RunningAgent) -> bool:
    """Whether nobody runs and nobody waits."""
    waiting, running = await samples(agent, "rkfleet_num_requests_waiting"), await samples(agent, "rkfleet_num_requests_running")
    return not any(waiting.values()) and not any(running.values())


def test_users_of_a_board_that_everything_happens_to_get_one_outcome_each_and_nobody_elses_words(tmp_path: Path) -> None:
    """Afterwards every model answers again; queue, gauges, lock, files and memory are as if nobody had been there."""

    async def body() -> None:
        chance = random.Random(SEED)
        async with board_scene(tmp_path) as scene:
            board = Board(tmp_path, scene, chance)
            board.says()
            models = await board.models()
            async with board.agent() as agent:
                for name, reason in (("eyes", "Serving"), ("sleepy", "OnDemand"), ("chat", "Serving")):
                    await scene.until_condition(name, "Ready", ("True", reason))
                for model in models:
                    await until(lambda model=model: answers(agent, model), 30)
                before = await samples(agent, "rkfleet_requests_total")
                pid = agent.process.pid
                files, threads = _open_files(pid), _status(pid, "Threads")
                rss: list[int] = []
                tally = await play(
                    board, agent, models, SECONDS, lambda share: rss.append(_status(pid, "VmRSS") << 10) if share >= 0.25 else None
                )
                await until(lambda: settled(agent), 30)
                counted = await samples(agent, "rkfleet_requests_total")
                told = f"seed {SEED}: {dict(tally.outcomes)}, {len(board.strokes)} strokes, {len(runs_of(agent.log))} runs"
                print(told)
                assert tally.wrong == [], f"{told}\n" + "\n".join(tally.wrong[:10])
                assert tally.own > 0 or tally.outcomes["answered"] < ANSWERS_TELLING, told
                _metrics_add_up(tally, before, counted)
                runs = runs_of(agent.log)
                assert len(runs) > 10, told
                both = [(one, next) for one, next in itertools.pairwise(runs) if next[0] < one[1]]
                assert both == [], "two models ran on the NPU at the same time"
                for model in models:
                    await until(lambda model=model: answers(agent, model), 60)
                await until(lambda: is_free(board.npu_lock()), 5)
                await until(lambda: _open_files(pid) <= files + FDS_MORE_MAX, 15)
                assert _status(pid, "Threads") <= threads + 1
                assert rss[-1] - rss[0] < RSS_GROWTH_BYTES_MAX, f"resident bytes of the agent: {rss}"
                assert len(agent.worker_pids()) <= len(models)
                for directory in (scene.data_dir / "prompt-cache").iterdir():
                    assert sum(one.stat().st_size for one in directory.glob("*.kv")) <= CACHE_BYTES
                assert "internal error" not in agent.log.read_text(errors="replace")
                await _killed_under_load(board, agent, models)
            async with board.agent() as again:
                for model in models:
                    await until(lambda model=model: answers(again, model), 60)

    asyncio.run(body())


def _metrics_add_up(tally: Tally, before: dict[str, float], after: dict[str, float]) -> None:
    """Check what the board counted against what its users saw: those who left may have been counted as anything, or not yet."""
    outcome = dict.fromkeys(("stop", "length", "tool_calls", "invalid", "rejected", "cancelled", "failed"), 0.0)
    for labels, value in after.items():
        outcome[re.findall(r'outcome="(\w+)"', labels)[0]] += value - before.get(labels, 0)
    seen = tally.outcomes
    left, counted = seen["left"], sum(outcome.values())
    expected = tally.sent - left - seen["uncounted"]
    assert expected <= counted <= expected + left, (dict(seen), outcome)
    answered = outcome["stop"] + outcome["length"] + outcome["tool_calls"]
    assert seen["answered"] <= answered <= seen["answered"] + left, (dict(seen), outcome)


async def _killed_under_load(board: Board, agent: RunningAgent, models: tuple[str, ...]) -> None:
    """Kill the agent while everybody asks; its workers are gone, and the NPU with them."""
    tally, stop = Tally(), asyncio.Event()
    users = [User(tenant, board.keys[tenant], models, random.Random(number), tally) for number, tenant in enumerate(TENANTS)]
    asking = [asyncio.create_task(user.run(str(agent.client.base_url), stop)) for user in users]
    await until(lambda: tally.outcomes["answered"] > 3, 20)
    workers = agent.worker_pids()
    agent.kill()
    stop.set()
    await asyncio.gather(*asking)
    await until(lambda: not any(is_alive(worker) for worker in workers), WORKER_END_SECONDS)
    assert is_free(board.npu_lock())
    assert not [one for one in tally.wrong if "without an answer" not in one and "cannot be read" not in one and "DONE" not in one]
