"""A board killed in the middle of every step that it knows, while one model replaces another: the old one serves or the new one, whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import msgspec
import pytest

from controller.trust.binding import Binding
from controller.trust.pull_tokens import GrantIssuer
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment, ServingParameters
from rkfleet.clock import SystemClock
from rkfleet.ports import free_port
from rkfleet.registry_client import RegistryClient
from tests.support.agents import MACHINE_ID, join
from tests.support.killed_agent import BOARD, LIMIT_BYTES, MODEL_BYTES, Command
from tests.support.registry import RegistryWorld
from tests.support.sessions import SessionWorld, make_key, session_world, until

SEED = int(os.environ.get("RKFLEET_SEED", "20261125"))
KILLS_SHORT = 12  # In `make test`; `make soak-board` kills in every step, 25 times.
STEPS_MIN = 40
KILLED_SHARE_MIN = 0.8  # A step that depends on chance may not come again.
AGAIN_SHARE = 0.3  # Of kills in a swap, after which the next life is killed in its start as well.
CONVERGE_SECONDS = 30.0
ASK_SECONDS = 0.02
SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Model:
    """A model of random bytes, and a replica that serves it."""

    replica: AssignedReplica
    digest: str


@dataclass
class Scene:
    """A controller's session side, a registry, and what the board should serve; `allowed` is what may answer now."""

    root: Path
    sessions: SessionWorld
    registry: RegistryClient
    chance: random.Random
    http: httpx2.AsyncClient
    port: int
    model: Model | None = None
    allowed: frozenset[str] = frozenset()
    answers: Counter[str] = field(default_factory=Counter)
    number: int = 0

    @property
    def data_dir(self) -> Path:
        return self.root / "agents" / BOARD

    async def push(self) -> Model:
        """Make a model and a Replica of it."""
        self.number += 1
        body = self.chance.randbytes(MODEL_BYTES)
        digest = hashlib.sha256(body).hexdigest()
        await self.registry.push_blob("default/tiny", f"sha256:{digest}", body)
        name = f"r-{self.number}"
        replica = AssignedReplica(
            namespace="default", name=name, uid=await self.sessions.create_replica(name, BOARD), generation=1, model="tiny",
            served_model_name="chat", variant="v", soc="any", dtype="q4", runtime="llamacpp", memory_bytes=1 << 20,
            files=(AssignedFile(path="tiny.gguf", digest=f"sha256:{digest}", size_bytes=MODEL_BYTES),),
            serving=ServingParameters(drain_seconds=2),
        )  # fmt: skip
        return Model(replica, digest)

    async def swap(self) -> None:
        """Replace the model in place, as a rollout does; returns when the board serves the new one alone."""
        old, new = self.model, await self.push()
        self.allowed = frozenset({new.digest} if old is None else {old.digest, new.digest})
        if old is not None:
            staged = msgspec.structs.replace(new.replica, activation="Staged", replaces=old.replica.uid)
            await self.offer(old.replica, staged)
            await self.until_ready(new, "Staged")
            draining = msgspec.structs.replace(old.replica, activation="Draining")
            await self.offer(draining, msgspec.structs.replace(new.replica, replaces=old.replica.uid))
            await self.until_ready(new, "Serving")
        await self.offer(new.replica)
        await self.until_ready(new, "Serving")
        self.model = new
        await self.settled()

    async def offer(self, *replicas: AssignedReplica) -> None:
        await self.sessions.want(BOARD, Assignment(replicas=replicas))

    async def until_ready(self, model: Model, reason: str) -> None:
        """Wait until the controller knows that the board holds what it was offered and how the replica stands."""

        async def level() -> bool:
            board = (await self.sessions.board(BOARD)).status.assignment
            status = (await self.sessions.replica(model.replica.name)).status
            told = any(one.type == "Ready" and one.reason == reason for one in status.conditions)
            return told and board.accepted_number == board.number

        await until(level, CONVERGE_SECONDS)

    async def settled(self) -> None:
        """Wait until the board serves its model, and nothing of any step is left on its disk."""

        async def level() -> bool:
            assert self.model is not None
            return await self.ask() == self.model.digest

        await until(level, CONVERGE_SECONDS)
        await until(lambda: not left_over(self.data_dir), CONVERGE_SECONDS)
        whole = self.check_disk()
        assert self.model is not None
        assert self.model.digest in whole
        assert len(whole) * MODEL_BYTES <= LIMIT_BYTES

    async def back(self) -> None:
        """Wait until the board serves its model and is in session."""
        await self.settled()

        async def level() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return "rkfleet_agent_session_open 1.0" in (await self.http.get("/metrics")).text
            return False

        await until(level, CONVERGE_SECONDS)

    def check_disk(self) -> set[str]:
        """Return the artifacts, each of which has the digest that its name says, whatever happened."""
        whole = {path.name: path.read_bytes() for path in (self.data_dir / "artifacts/sha256").iterdir()}
        assert [name for name, body in whole.items() if hashlib.sha256(body).hexdigest() != name] == []
        return set(whole)

    async def ask(self) -> str | None:
        """Return which model answers; None while none does."""
        body = {"model": "chat", "messages": [{"role": "user", "content": "Who are you?"}]}
        try:
            answer = await self.http.post("/v1/chat/completions", json=body)
        except httpx2.HTTPError:
            return None
        return answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None

    async def ask_for_ever(self) -> None:
        """Ask all the time: what answers is a whole model, and one that should."""
        clock = SystemClock()
        while True:
            if (digest := await self.ask()) is not None:
                self.answers[digest] += 1
                assert digest in self.allowed, f"{digest} answered, which is none of {sorted(self.allowed)}"
            await clock.sleep(ASK_SECONDS)


def left_over(data_dir: Path) -> list[Path]:
    """Return bytes that belong to nothing."""
    return [*(data_dir / "partial").iterdir(), *data_dir.rglob("*.new")]


class Mortal:
    """The board's agent, life after life."""

    def __init__(self, process: asyncio.subprocess.Process, root: Path, port: int) -> None:
        self._process = process
        self._root = root
        self._port = port
        self._pid = 0
        self.dead: asyncio.Task[int] | None = None
        self.kills = 0

    async def live(self, step: str = "", occurrence: int = 1) -> None:
        """Start the next life, which ends in that step."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(Command(self._port, step, occurrence)) + b"\n")
        await self._process.stdin.drain()
        self._pid = await self._number()
        self.dead = asyncio.ensure_future(self._number())

    async def arm(self, step: str, occurrence: int) -> None:
        """Let this life end in that step, or the next one if this one ended after all, later than its step was waited for."""
        path = self._root / "agents" / "arm"
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(Command(0, step, occurrence)))
        part.replace(path)
        self._send(signal.SIGUSR1)
        await until(lambda: not path.exists() or self._is_dead())
        if self._is_dead():
            path.unlink(missing_ok=True)
            self.kills += 1
            await self.live(step, occurrence)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End this life from outside."""
        assert self.dead is not None
        self._send(number)
        assert await self.dead in {-signal.SIGKILL, 0 if number == signal.SIGTERM else -number}

    def _is_dead(self) -> bool:
        return self.dead is None or self.dead.done()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    async def died(self, work: asyncio.Task[None]) -> bool:
        """Wait until this life or the work ends; return whether it died by its own hand."""
        assert self.dead is not None
        await asyncio.wait((self.dead, work), return_when=asyncio.FIRST_COMPLETED)
        if not self.dead.done():
            work.result()
            return False
        assert self.dead.result() == -signal.SIGKILL
        self.kills += 1
        return True

    async def _number(self) -> int:
        assert self._process.stdout is not None
        return int(await self._process.stdout.readline())


@dataclass
class Campaign:
    """Kills, one after the other."""

    scene: Scene
    mortal: Mortal
    log: Path
    missed: Counter[str] = field(default_factory=Counter)

    async def record(self) -> tuple[Counter[str], Counter[str]]:
        """Return the steps of a start and of a swap, as they are without a kill."""
        await self.mortal.live()
        for _ in range(3):  # the third model evicts the first
            await self.scene.swap()
        await self.mortal.end(signal.SIGTERM)
        self.log.write_bytes(b"")
        await self.mortal.live()
        await self.scene.back()
        start = Counter(self.log.read_text().splitlines())
        self.log.write_bytes(b"")
        await self.scene.swap()
        swap = Counter(self.log.read_text().splitlines())
        self.log.unlink()
        self.log.symlink_to(os.devnull)
        return start, swap

    async def kill_in_start(self, step: str, occurrence: int) -> None:
        """Kill a life that has just begun; the next one serves what was served."""
        await self.mortal.end()
        await self.mortal.live(step, occurrence)
        settling = asyncio.ensure_future(self.scene.back())
        if not await self.mortal.died(settling):
            self.missed[step] += 1
            return
        self.scene.check_disk()
        await self.mortal.live()
        await settling

    async def kill_in_swap(self, step: str, occurrence: int, again: tuple[str, int] | None) -> None:
        """Kill in the middle of a swap, and the life after it in `again`; the next one finishes the swap."""
        await self.mortal.arm(step, occurrence)
        swapping = asyncio.ensure_future(self.scene.swap())
        if not await self.mortal.died(swapping):
            self.missed[step] += 1
            return
        self.scene.check_disk()
        if again is not None:
            await self.mortal.live(*again)
            if not await self.mortal.died(swapping):
                return
            self.scene.check_disk()
        await self.mortal.live()
        await swapping


async def campaign(campaign: Campaign, chance: random.Random, rounds: int) -> None:
    """Kill in every step `rounds` times; for a single round in the middle of every write and in a few other steps."""
    start, swap = await campaign.record()
    steps = [("start", step, count) for step, count in sorted(start.items())] + [
        ("swap", step, count) for step, count in sorted(swap.items())
    ]
    assert len(steps) >= STEPS_MIN
    chosen = [step for _ in range(rounds) for step in chance.sample(steps, len(steps))]
    if rounds == 1:
        chosen = sorted(chosen, key=lambda step: not step[1].startswith("half of write"))[:KILLS_SHORT]
    for number, (phase, step, count) in enumerate(chosen):
        occurrence = chance.randint(1, count)
        print(f"{number}: {phase}, {step}, {occurrence} of {count}", flush=True)
        if phase == "start":
            await campaign.kill_in_start(step, occurrence)
        else:
            again = chance.choice(sorted(start)) if chance.random() < AGAIN_SHARE else ""
            await campaign.kill_in_swap(step, occurrence, (again, 1) if again else None)
    print(
        f"{len(steps)} steps, {campaign.mortal.kills} kills, not reached: {dict(campaign.missed)}, {campaign.scene.answers.total()} answers"
    )
    assert campaign.mortal.kills >= KILLED_SHARE_MIN * len(chosen)
    assert campaign.scene.answers


@contextlib.asynccontextmanager
async def board(root: Path, chance: random.Random) -> AsyncIterator[Campaign]:
    """Run session side and registry in this event loop, and have a board that has joined."""
    registry = RegistryWorld(root)
    port = free_port()

    async def assignment_of(name: str) -> Assignment | None:
        return world.minter.wanted.get(name)

    issuer = GrantIssuer(registry.signer, registry.url, assignment_of)
    async with (
        registry.running() as (_, client),
        session_world(root, issuer=issuer) as world,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=5) as http,
    ):
        scene = Scene(root, world, client, chance, http, port)
        private, public = make_key()
        await world.create_board(BOARD, Binding(public.sha256, MACHINE_ID))
        join(world.pki, scene.data_dir, world.port, private, world.pki.issue_board(BOARD, public, SystemClock().now()))
        log = root / "steps"
        with (root / "agent.log").open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.killed_agent", str(scene.data_dir), str(log),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=said, cwd=SOURCE,
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            )  # fmt: skip
        mortal = Mortal(process, root, port)
        try:
            yield Campaign(scene, mortal, log)
        finally:
            if mortal.dead is not None and not mortal.dead.done():
                await mortal.end(signal.SIGTERM)
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_board_that_is_killed_in_any_step_serves_the_old_model_or_the_new_one_and_never_half_of_one(
    tmp_path: Path, soak_factor: int
) -> None:
    """Whatever the step, the disk holds whole artifacts only, the next life goes on by itself, and nothing is left over in the end."""
    print(f"RKFLEET_SEED={SEED}")
    chance = random.Random(SEED)

    async def test() -> None:
        async with board(tmp_path, chance) as made, asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(made.scene.ask_for_ever())
            await campaign(made, chance, soak_factor)
            asking.cancel()

    asyncio.run(test())
