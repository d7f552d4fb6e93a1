"""The real agent as a process of its own, against a real session side, a real registry and the real sample model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from controller.trust.pki import Pki
from controller.trust.pull_tokens import GrantIssuer
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment, ServingParameters
from rkfleet.clock import SystemClock
from rkfleet.enrolment import serving_name
from rkfleet.kinds.replica import Replica
from rkfleet.ports import free_port
from rkfleet.sample import SMOLLM2, ensure_sample
from tests.support.registry import RegistryWorld
from tests.support.sessions import SessionWorld, make_key, session_world, until

BOARD = "cpu-1"
LOAD_SECONDS = 60.0
MACHINE_ID = Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else ""


@dataclass
class RunningAgent:
    """One process of `python -m agent`; `client` speaks to its listener on loopback."""

    process: asyncio.subprocess.Process
    client: httpx2.AsyncClient
    serving_url: str
    log: Path

    async def get(self, path: str) -> httpx2.Response:
        return await self.client.get(path)

    async def is_ready(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return (await self.get("/readyz")).status_code == 200
        return False

    async def serves(self) -> bool:
        """Whether a model is loaded and listed."""
        with contextlib.suppress(httpx2.TransportError):
            return bool((await self.get("/v1/models")).json()["data"])
        return False

    async def chat(self, model: str = "chat", *, text: str = "Say hello.", tokens: int = 4, path: str = "") -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
        return await self.client.post(f"{path}/v1/chat/completions", json=body)

    async def metric(self, line: str) -> float | None:
        """Return the value of the sample whose name and labels are `line`."""
        text = (await self.get("/metrics")).text
        return next((float(found.rpartition(" ")[2]) for found in text.splitlines() if found.rpartition(" ")[0] == line), None)

    def worker_pids(self) -> list[int]:
        """Processes of workers that belong to this agent."""
        return [pid for pid, parent in _children() if parent == self.process.pid]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def stop(self) -> int:
        """Ask it to stop and return its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running_agent(
    data_dir: Path, *options: str, ready: bool = True, environ: Mapping[str, str] | None = None, program: str = "agent"
) -> AsyncIterator[RunningAgent]:
    """Run an agent that has an identity, or `options` to get one; at the end it is gone, however the block ended.

    `environ` is added to the environment, for example what `wrong_clock` returns; `program` may be `tests.support.quick_agent`.
    """
    ops_port, serving_port = free_port(), free_port()
    reader, writer = os.pipe()
    log = data_dir.with_name(f"{data_dir.name}.log")
    command = [
        sys.executable, "-m", program, "--data-dir", str(data_dir), "--controller", "https://127.0.0.1:1", "--name", BOARD,
        "--serving-port", str(serving_port), "--ops-port", str(ops_port), "--lifeline-fd", str(reader), "--memory", "2Gi", *options,
    ]  # fmt: skip
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(reader,), stderr=output, stdout=output, env={**os.environ, **(environ or {})}
        )
    os.close(reader)
    try:
        # No certificates are looked up for plain HTTP, which would take longer than any request here.
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ops_port}", trust_env=False, verify=False, timeout=60) as client:
            agent = RunningAgent(process, client, f"https://127.0.0.1:{serving_port}", log)
            if ready:
                await until(agent.is_ready)
            yield agent
    finally:
        os.close(writer)
        if process.returncode is None:
            async with asyncio.timeout(15):
                await process.wait()


def join(pki: Pki, data_dir: Path, session_port: int, private: bytes, certificates: Any) -> None:
    """Write the identity that enrolment would leave."""
    directory = data_dir / "identity"
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "key.pem": private,
        "cert.pem": certificates.client.encode(),
        "serving.pem": certificates.serving.encode(),
        "ca.pem": pki.ca_pem("servers").encode(),
        "gateways-ca.pem": pki.ca_pem("gateways").encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    facts = {
        "fleetId": pki.fleet_id, "name": BOARD, "controller": "https://127.0.0.1:1", "sessionAddress": f"127.0.0.1:{session_port}",
    }  # fmt: skip
    (directory / "identity.json").write_text(json.dumps(facts))


@dataclass
class BoardScene:
    """A controller's session side, a registry with the sample model, and a board that has joined."""

    root: Path
    sessions: SessionWorld
    registry: RegistryWorld
    data_dir: Path
    file: AssignedFile
    assigned: dict[str, AssignedReplica] = field(default_factory=dict)

    async def assign(self, name: str, **changes: Any) -> AssignedReplica:
        """Assign a replica of the sample model, or change one, and offer it."""
        before = self.assigned.get(name)
        if before is None:
            uid = await self.sessions.create_replica(name, BOARD)
            before = AssignedReplica(
                namespace="default", name=name, uid=uid, generation=1, model=SMOLLM2.model, served_model_name="chat",
                variant=SMOLLM2.variant, soc="any", dtype=SMOLLM2.dtype, runtime="llamacpp", files=(self.file,), memory_bytes=300 << 20,
                serving=ServingParameters(context_tokens=512, drain_seconds=20, max_concurrent=1),
            )  # fmt: skip
        self.assigned[name] = msgspec.structs.replace(before, **changes)
        await self.offer()
        return self.assigned[name]

    async def remove(self, name: str) -> None:
        del self.assigned[name]
        await self.offer()

    async def offer(self) -> None:
        await self.sessions.want(BOARD, Assignment(replicas=tuple(self.assigned.values())))

    async def status(self, name: str) -> Replica:
        return await self.sessions.replica(name)

    async def condition(self, name: str, type: str) -> tuple[str, str]:
        """Return status and reason; two empty strings for a condition that is not there."""
        found = (one for one in (await self.status(name)).status.conditions if one.type == type)
        return next(((one.status, one.reason) for one in found), ("", ""))

    async def until_condition(self, name: str, type: str, expected: tuple[str, str], seconds: float = LOAD_SECONDS) -> None:
        async def level() -> bool:
            return await self.condition(name, type) == expected

        try:
            await until(level, seconds)
        except TimeoutError as error:
            raise AssertionError(f"{name} {type} is {await self.condition(name, type)} instead of {expected}") from error

    def gateway_tls(self) -> ssl.SSLContext:
        """Return the TLS context of a gateway of this fleet."""
        private, public = make_key()
        directory = self.root / "gateway"
        directory.mkdir(exist_ok=True)
        (directory / "key.pem").write_bytes(private)
        (directory / "cert.pem").write_text(self.sessions.pki.issue_gateway("gw", public, SystemClock().now()))
        context = ssl.create_default_context(cadata=self.sessions.pki.ca_pem("servers"))
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        return context

    @property
    def serving_name(self) -> str:
        return serving_name(BOARD, self.sessions.pki.fleet_id)


@contextlib.asynccontextmanager
async def board_scene(root: Path) -> AsyncIterator[BoardScene]:
    """Run session side and registry in this event loop and push the sample model."""
    sample = await ensure_sample()
    registry = RegistryWorld(root)
    digest = f"sha256:{SMOLLM2.sha256}"

    async def assignment_of(board: str) -> Assignment | None:
        return world.minter.wanted.get(board)

    issuer = GrantIssuer(registry.signer, registry.url, assignment_of)
    async with registry.running() as (_, client), session_world(root, issuer=issuer) as world:
        await client.push_blob(f"default/{SMOLLM2.model}", digest, sample)
        private, public = make_key()
        from controller.trust.binding import Binding

        await world.create_board(BOARD, Binding(public.sha256, MACHINE_ID))
        data_dir = root / "agents" / BOARD
        join(world.pki, data_dir, world.port, private, world.pki.issue_board(BOARD, public, SystemClock().now()))
        file = AssignedFile(path=SMOLLM2.file_name, digest=digest, size_bytes=SMOLLM2.size_bytes)
        yield BoardScene(root, world, registry, data_dir, file)


def _children() -> list[tuple[int, int]]:
    """Return (pid, parent) of every worker process of the machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if b"agent.workers.child" in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append((int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
