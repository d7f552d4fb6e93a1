"""The agent, wired: the only file that knows every part of it.

In: a `Config` and, from whoever hosts boards that do not exist (`simulation/boards`), the `Parts` that differ. Out: a board that serves.
Called by `agent/__main__.py`. Time, randomness, ids and every object that holds something open are made here. An `Agent` touches nothing
that belongs to the whole process (executor, log, signals); `run` does, so that many agents can live in one.

Nesting is the order of ending. Told to stop, the loop and the session end first (with a Goodbye), then the listeners, which let open
answers finish for a few seconds, and last the workers that those answers come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.board.facts import Overrides
from agent.board.sensors import MachineSensors, Sensors
from agent.config import Config
from agent.fetching import Bytes
from agent.journal import Journals
from agent.ledger import Ledger
from agent.logs import BoardLogs
from agent.loop import Loop
from agent.metrics import AgentMetrics
from agent.own_log import own_log
from agent.planning.values import Abilities, Served
from agent.reports import Reports
from agent.serving.access import GatewayDoor, KeyDoor, LocalDoor
from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.session.runner import Machine, SessionRunner
from agent.workers import backends
from agent.workers.base import Backend
from agent.workers.supervisor import Supervisor
from rkfleet.assignment import AssignedReplica
from rkfleet.benchmarks import Table
from rkfleet.clock import Clock, SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.errors import FailedPrecondition
from rkfleet.identity import Enrolment, Identity, ensure_identity
from rkfleet.metrics import Metrics
from rkfleet.ops import Listener, Tls, bracketed, is_loopback, ops_app, serve_asgi
from rkfleet.process import lock_data_dir, run_until_stopped

__all__ = ["Agent", "Parts", "machine_parts", "run"]

# Disk and hash work, one fetch and one verification at a time, and the ledger beside them. Every thread keeps memory that it once used.
THREADS_MAX: Final = 3

_log = logging.getLogger(__name__)


async def run(config: Config) -> None:
    """Run the agent until it is told to stop.

    Raises:
        FailedPrecondition: The data directory is in use, an address cannot be bound, or there is no identity and no token.
        PermissionDenied: The controller refuses to enrol this board.
    """
    with lock_data_dir(config.data_dir):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="disk"))
        clock = SystemClock()
        jitter = random.Random()  # noqa: S311 (spreads retries; keys come from `secrets`)
        agent = Agent(config, machine_parts(config, clock, jitter), clock=clock, jitter=jitter)
        await run_until_stopped(agent.run(), config.lifeline)


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a board the board that it is.

    Attributes:
        backends: What can be started on it.
        sensors: The machine.
        identity: Waits until the board has an identity, enrolling if need be, and returns it.
        tables: The benchmark table behind each runtime that is simulated, by the runtime's name.
        simulated: Whether the hardware does not exist; said with every answer and figure.
    """

    backends: tuple[Backend, ...]
    sensors: Sensors
    identity: Callable[[], Awaitable[Identity]]
    tables: Mapping[str, Table] = {}
    simulated: bool = False


def machine_parts(config: Config, clock: Clock, jitter: random.Random) -> Parts:
    """Return the parts of a board that is the machine this runs on."""
    found = (backends.llamacpp(new_api_key=lambda: secrets.token_urlsafe(24)),)
    installed = tuple(backend for backend in found if backend is not None)
    overrides = Overrides(memory_bytes=config.memory_bytes, artifact_limit_bytes=config.artifact_limit_bytes)
    runtimes = tuple(sorted((backend.runtime for backend in installed), key=lambda runtime: runtime.name))
    sensors = MachineSensors(config.filesystem_root, config.data_dir, overrides, runtimes)

    async def identity() -> Identity:
        enrolment = Enrolment(
            role="board",
            name=config.name,
            controller=config.controller,
            token=config.token,
            ca_pin=config.ca_pin,
            machine_id=sensors.machine_id(),
        )
        given = enrolment if config.token or config.token_file else None
        return await ensure_identity(config.data_dir / "identity", given, clock, jitter, config.token_file)

    return Parts(backends=installed, sensors=sensors, identity=identity)


class Agent:
    """One board. What needs no identity is made once; `run` makes the rest as soon as there is one.

    Attributes:
        metrics: Everything that it counts, for whoever exposes several boards together.
    """

    def __init__(self, config: Config, parts: Parts, *, clock: Clock, jitter: random.Random) -> None:
        """Take what differs between boards; nothing is opened before `run`, except the ledger, which is read."""
        self._config: Final = config
        self._parts: Final = parts
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._disk: Final = SystemDisk()
        self._wake: Final = asyncio.Event()
        self.metrics: Final = Metrics("agent")
        self._gauges: Final = AgentMetrics(self.metrics)
        self._routes: Final = Routes()
        self._reports: Final = Reports(clock)
        self._journals: Final = Journals(clock)
        self._ledger: Final = Ledger(config.data_dir, self._disk, self._wake.set)
        self._cache: Final = Cache(config.data_dir, config.artifact_limit_bytes, self._disk, self.metrics)
        self._supervisor: Final = Supervisor(
            parts.backends,
            clock=clock,
            random=jitter,
            metrics=self.metrics,
            on_change=self._wake.set,
            journals=self._journals,
        )
        self._sensors: Final = parts.sensors
        self._serving: Final = Serving(self._routes, self.metrics, clock, simulated=self._parts.simulated)
        self._session: SessionRunner | None = None
        self._listeners: Final[list[Listener]] = []

    @property
    def reserved_bytes(self) -> int:
        """Memory that workers hold now, as their Models reserve it."""
        return sum(worker.memory_bytes for worker in self._supervisor.states().values() if worker.phase not in {"Starting", "BackOff"})

    @property
    def no_session_reason(self) -> str:
        """Why the board is not in session; empty while it is."""
        if self._session is None:
            return "it has not enrolled yet"
        return self._session.connection.reason

    def cut_power(self) -> None:
        """End everything that others see of the board at this moment: no Goodbye, no end of answers. Cancel `run` in the same step.

        The controller sees the stream break, which a machine without power could not tell it: it would learn that from the silence.
        """
        if self._session is not None:
            self._session.break_off()
        for listener in self._listeners:
            listener.cut()

    async def run(self) -> None:
        """Enrol if that is still to do, then serve."""
        with own_log(self._journals):
            await self._run()

    async def _run(self) -> None:
        if self._parts.simulated:
            _log.warning("this board is simulated: its hardware does not exist and every figure is simulated")
        self._gauges.show_simulated(simulated=self._parts.simulated)
        # Nobody is asked for a key here, so it is for this machine alone: other machines come through the HTTPS listeners below.
        local_clients = is_loopback(self._config.ops_host)
        door = LocalDoor(self._serving, origins=self._config.cors_origins, keys=self._config.api_keys)
        ops = ops_app(self._not_ready, self.metrics.text, otherwise=door if local_clients else None)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._supervisor.run())
            async with serve_asgi(ops, self._config.ops_host, self._config.ops_port) as local:
                self._listeners.append(local)
                _log.info(
                    "listening",
                    extra={"for": "health, metrics and local clients" if local_clients else "health and metrics", "url": local.url},
                )
                identity = await self._identity()
                tls = Tls(identity.serving_cert_file, identity.key_file, identity.gateways_ca_file)
                gateways = GatewayDoor(self._serving)
                async with (
                    self._clients(identity),
                    serve_asgi(gateways, self._config.serving_host, self._config.serving_port, tls=tls) as listener,
                ):
                    self._listeners.append(listener)
                    url = f"https://{bracketed(self._config.advertise_host)}:{listener.port}"
                    _log.info("listening", extra={"for": "gateways", "url": listener.url, "advertised": url})
                    await self._converge(identity, url)
            working.cancel()

    @contextlib.asynccontextmanager
    async def _clients(self, identity: Identity) -> AsyncIterator[None]:
        """Listen for clients of other machines, if the operator wants it."""
        config = self._config
        if not config.client_host:
            yield
            return
        door = KeyDoor(self._serving, keys=config.api_keys, clock=self._clock, origins=config.cors_origins)
        tls = Tls(config.client_tls_cert or identity.serving_cert_file, config.client_tls_key or identity.key_file)
        async with serve_asgi(door, config.client_host, config.client_port, tls=tls) as listener:
            self._listeners.append(listener)
            _log.info("listening", extra={"for": "clients with an API key", "url": listener.url})
            yield

    async def _converge(self, identity: Identity, serving_url: str) -> None:
        """Keep the session and the loop."""
        session = self._session = SessionRunner(
            identity=identity,
            machine=lambda: self._machine(serving_url),
            clock=self._clock,
            jitter=self._jitter,
            ledger=self._ledger,
            reports=self._reports,
            logs=BoardLogs(self._journals, self._clock),
            on_change=lambda: self._gauges.show_session(open=session.connection.number > 0),
        )
        fetcher = Fetcher(self._cache, _trust(identity.ca_file), self._disk, self.metrics)
        loop = Loop(
            clock=self._clock,
            wake=self._wake,
            ledger=self._ledger,
            cache=self._cache,
            bytes=Bytes(
                cache=self._cache, fetcher=fetcher, grants=session, clock=self._clock, jitter=self._jitter, on_change=self._wake.set
            ),
            supervisor=self._supervisor,
            traffic=self._serving,
            sensors=self._sensors,
            reports=self._reports,
            metrics=self._gauges,
            abilities=self._abilities(serving_url),
            publish=lambda served: self._routes.replace(tuple(_route(one, identity.name) for one in served)),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(loop.run())
            tasks.create_task(session.run())

    async def _identity(self) -> Identity:
        identity = await self._parts.identity()
        if identity.name != self._config.name:
            raise FailedPrecondition(
                f"{identity.directory} is the identity of board {identity.name}, not of {self._config.name}; use another --data-dir"
            )
        return identity

    def _machine(self, serving_url: str) -> Machine:
        return Machine(
            machine_id=self._sensors.machine_id(),
            boot_id=self._sensors.boot_id(),
            facts=self._sensors.facts(self._cache.used_bytes()),
            serving_url=serving_url,
        )

    def _abilities(self, serving_url: str) -> Abilities:
        facts = self._sensors.facts(self._cache.used_bytes())
        return Abilities(
            soc=facts.soc,
            libraries={runtime.name: runtime.version for runtime in self._supervisor.runtimes},
            tables=self._parts.tables,
            cores=self._sensors.cores(),
            memory_bytes=facts.allocatable_memory_bytes,
            serving_url=serving_url,
        )

    def _not_ready(self) -> str:
        if self._reports.state is None:
            return "the board has not joined its fleet yet, or is starting"
        return ""


def _route(served: Served, board: str) -> Route:
    """Return a replica as the serving side knows it."""
    replica = served.replica
    return Route(
        uid=replica.uid,
        namespace=replica.namespace,
        name=replica.name,
        served_model_name=replica.served_model_name,
        model=replica.model,
        variant=replica.variant,
        board=board,
        endpoint=served.endpoint,
        api_key=served.api_key,
        max_concurrent=replica.serving.max_concurrent,
        max_queued=replica.serving.max_queued,
        max_output_tokens=replica.serving.max_output_tokens,
        context_tokens=replica.serving.context_tokens,
        draining=served.draining,
        waiting_reason=served.waiting,
        adapters=_adapters(replica),
        runtime=replica.runtime,
        dtype=replica.dtype,
        size_bytes=sum(file.size_bytes for file in replica.files),
        digest=next((file.digest for file in replica.files if file.role == "weight"), "").removeprefix("sha256:"),
        memory_bytes=replica.memory_bytes,
        on_demand=replica.serving.load == "OnDemand",
        shifts=replica.serving.context_overflow == "Shift",
        images=any(file.role == "encoder" for file in replica.files),
        soc=replica.soc,
        reference_model=replica.reference_model,
        reference_sdk_version=replica.reference_sdk_version,
    )


def _adapters(replica: AssignedReplica) -> tuple[str, ...]:
    """Return the LoRAs that requests may name. llama.cpp would need them at load, and would ignore the name without a word."""
    if replica.runtime != "rkllm":
        return ()
    return tuple(sorted(PurePosixPath(file.path).stem for file in replica.files if file.role == "adapter"))


def _trust(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts servers of the fleet and nobody else."""
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise FailedPrecondition(f"identity file {ca_file} cannot be used: {error}") from error
