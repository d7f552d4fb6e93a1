"""The agent, wired: the only file that knows every part of it.

In: a `Config` and, from whoever hosts boards that do not exist (`simulation/boards`), the `Parts` that differ. Out: a board that serves.
Called by `agent/__main__.py`. Time, randomness, ids and every object that holds something open are made here. An `Agent` touches nothing
that belongs to the whole process (executor, log, signals); `run` does, so that many agents can live in one.

Nesting is the order of ending. Told to stop, the loop and the session end first (with a Goodbye), then the listeners, which let open
answers finish for a few seconds, and last the workers that those answers come from.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from agent.outage import Outage
from agent.own_log import own_log
from agent.planning.values import Abilities, Served
from agent.reports import Reports
from agent.samples import read_series
from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.session.runner import Machine, SessionRunner
from agent.workers import backends
from agent.workers.base import Backend
from agent.workers.supervisor import Supervisor
from rkfleet.benchmarks import Table
from rkfleet.clock import Clock, SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.errors import FailedPrecondition
from rkfleet.fleet_time import FleetTime, follow_dates
from rkfleet.identity import Enrolment, Identity, ensure_identity
from rkfleet.metrics import Metrics
from rkfleet.ops import Listener, Tls, bracketed, is_loopback, ops_app, serve_asgi
from rkfleet.process import lock_data_dir, run_until_stopped
from rkfleet.renewal import Renew, Renewal, Renewing, renew_in_child
from rkfleet.tls import ignore_dates

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
        renew: Renews the certificates of that identity.
        tables: The benchmark table behind each runtime that is simulated, by the runtime's name.
        simulated: Whether the hardware does not exist; said with every answer and figure.
    """

    backends: tuple[Backend, ...]
    sensors: Sensors
    identity: Callable[[], Awaitable[Identity]]
    renew: Renew = renew_in_child
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
        self._time: Final = FleetTime(clock)
        self._wake: Final = asyncio.Event()
        self.metrics: Final = Metrics("agent")
        self._gauges: Final = AgentMetrics(self.metrics)
        self._routes: Final = Routes()
        self._reports: Final = Reports(clock, self._time)
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
        outage = self._outage()
        await outage.load()
        if self._parts.simulated:
            _log.warning("this board is simulated: its hardware does not exist and every figure is simulated")
        self._gauges.show_simulated(simulated=self._parts.simulated)
        # /v1 asks nobody for a key here, so it is for this machine alone: other machines come through the HTTPS listener below.
        local_clients = is_loopback(self._config.ops_host)
        ops = ops_app(self._not_ready, self.metrics.text, otherwise=self._serving if local_clients else None)
        async with asyncio.TaskGroup() as tasks:
            working, remembering = tasks.create_task(self._supervisor.run()), tasks.create_task(outage.run())
            async with serve_asgi(ops, self._config.ops_host, self._config.ops_port) as local:
                self._listeners.append(local)
                _log.info(
                    "listening",
                    extra={"for": "health, metrics and local clients" if local_clients else "health and metrics", "url": local.url},
                )
                identity = await self._identity()
                tls = Tls(identity.serving_cert_file, identity.key_file, identity.gateways_ca_file)
                async with serve_asgi(self._serving, self._config.serving_host, self._config.serving_port, tls=tls) as listener:
                    self._listeners.append(listener)
                    url = f"https://{bracketed(self._config.advertise_host)}:{listener.port}"
                    _log.info("listening", extra={"for": "gateways", "url": listener.url, "advertised": url})
                    await self._converge(identity, url, listener)
            working.cancel()
            remembering.cancel()

    def _outage(self) -> Outage:
        return Outage(
            self._config.data_dir,
            self._disk,
            boot_id=self._sensors.boot_id(),
            clock=self._clock,
            reports=self._reports,
            read=lambda: read_series(self.metrics),
            in_session=lambda: not self.no_session_reason,
        )

    async def _converge(self, identity: Identity, serving_url: str, listener: Listener) -> None:
        """Keep the session, the loop and the certificates."""
        session = self._session = SessionRunner(
            identity=identity,
            machine=lambda: self._machine(serving_url),
            clock=self._clock,
            jitter=self._jitter,
            ledger=self._ledger,
            reports=self._reports,
            logs=BoardLogs(self._journals, self._clock),
            on_change=lambda: self._gauges.show_session(open=session.connection.number > 0),
            on_time=self._time.tell,
        )
        renewing = self._renewing(identity, session, listener)
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
            tasks.create_task(renewing.run())
            if listener.context is not None:
                tasks.create_task(follow_dates(listener.context, self._time, self._clock))

    def _renewing(self, identity: Identity, session: SessionRunner, listener: Listener) -> Renewing:
        """Return what keeps the certificates new; the session takes them with its next connection, the listener at once."""

        def renewed(found: Identity) -> None:
            listener.reload()
            self._gauges.show_certificate(found.expires_timestamp)

        self._gauges.show_certificate(identity.expires_timestamp)
        return Renewing(
            identity,
            Renewal(role="board", machine_id=self._sensors.machine_id()),
            clock=self._clock,
            jitter=self._jitter,
            now=self._time.now,
            on_renewed=renewed,
            # Once the controller has told the time, dates say when a renewal is due; until then, no session may mean an ended certificate.
            lost_seconds=lambda: 0.0 if self._time.is_told else session.lost_seconds,
            renew=self._parts.renew,
        )

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
    )


def _trust(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts servers of the fleet and nobody else."""
    try:
        return ignore_dates(ssl.create_default_context(cafile=str(ca_file)))
    except OSError as error:
        raise FailedPrecondition(f"identity file {ca_file} cannot be used: {error}") from error
