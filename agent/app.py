"""The agent, wired: the only file that knows every part of it.

In: a `Config` and the `Parts` that make a board what it is (`agent/parts.py`). Out: a board that serves.
Called by `agent/__main__.py`. Time, randomness, ids and every object that holds something open are made here. An `Agent` touches nothing
that belongs to the whole process (executor, log, signals); `run` does, so that many agents can live in one.

Nesting is the order of ending. Told to stop, the loop and the session end first (with a Goodbye), then the listeners, which let open
answers finish for a few seconds, and last the workers that those answers come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.artifacts.prompt_caches import PromptCaches
from agent.certificates import fleet_trust, renewing, wait_for_identity
from agent.config import Config
from agent.demand import Demand
from agent.fetching import Bytes
from agent.journal import Journals
from agent.ledger import Ledger
from agent.logs import BoardLogs
from agent.loop import Loop
from agent.metrics import AgentMetrics
from agent.notify import Notifier
from agent.outage import Outage
from agent.own_log import own_log
from agent.parts import Local, Parts, installed_libraries, machine_parts, npu_lock
from agent.planning.values import Abilities
from agent.reports import Reports, status_sentence
from agent.samples import read_series
from agent.serving.access import GatewayDoor, KeyDoor, LocalDoor, LocalHosts
from agent.serving.app import Serving
from agent.serving.assigned import route_of
from agent.serving.routes import Routes
from agent.session.runner import Machine, SessionRunner
from agent.workers.supervisor import Supervisor
from rkfleet.clock import Clock, SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.fleet_time import FleetTime, follow_dates
from rkfleet.identity import Identity
from rkfleet.metrics import Metrics
from rkfleet.ops import Listener, Tls, bracketed, is_loopback, ops_app, serve_asgi
from rkfleet.process import lock_data_dir, run_until_stopped

__all__ = ["THREADS_MAX", "Agent", "run"]

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
        agent = Agent(config, machine_parts(config, clock, jitter), clock=clock, jitter=jitter, notifier=Notifier(clock, os.environ))
        await run_until_stopped(agent.run(), config.lifeline)


class Agent:
    """One board. What needs no identity is made once; `run` makes the rest as soon as there is one.

    Attributes:
        metrics: Everything that it counts, for whoever exposes several boards together.
        reports: What it says about itself.
        local_url: Base URL for clients of this machine; empty until it listens.
    """

    def __init__(self, config: Config, parts: Parts, *, clock: Clock, jitter: random.Random, notifier: Notifier | None = None) -> None:
        """Take what differs between boards; nothing is opened before `run`, except the ledger, which is read.

        A `notifier` speaks for the whole process, so only the one agent of a process has one.
        """
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
        self._notifier: Final = notifier or Notifier(clock, {})
        self.reports: Final = Reports(clock, self._time)
        self.local_url = ""
        self._journals: Final = Journals(clock)
        self._ledger: Final = Ledger(config.data_dir, self._disk, self._wake.set)
        self._prompt_caches: Final = PromptCaches(config.data_dir)
        self._cache: Final = Cache(
            config.data_dir, config.artifact_limit_bytes, self._disk, self.metrics, beside=self._prompt_caches.used_bytes
        )
        self._demand: Final = Demand(clock, self._wake.set)
        self._supervisor: Final = Supervisor(
            parts.backends,
            clock=clock,
            random=jitter,
            metrics=self.metrics,
            on_change=self._wake.set,
            journals=self._journals,
        )
        self._sensors: Final = parts.sensors
        self._serving: Final = Serving(self._routes, self.metrics, clock, demand=self._demand, simulated=self._parts.simulated)
        self._session: SessionRunner | None = None
        self._listeners: Final[list[Listener]] = []

    @property
    def reserved_bytes(self) -> int:
        """Memory that workers hold now, as their Models reserve it; one that loads has none of it yet."""
        return sum(worker.memory_bytes for worker in self._supervisor.states().values() if worker.phase in {"Ready", "Stopping"})

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
        self._gauges.show_simulated(simulated=self._parts.simulated or bool(self._parts.simulated_runtimes))
        # Nobody is asked for a key here, so it is for this machine alone: other machines come through the HTTPS listeners below.
        local_clients = is_loopback(self._config.ops_host)
        door = LocalDoor(self._serving, origins=self._config.cors_origins, keys=self._config.api_keys)
        ops = ops_app(self._not_ready, self.metrics.text, otherwise=door if local_clients else None)
        listening = LocalHosts(ops, self._serving, origins=self._config.cors_origins) if local_clients else ops
        async with asyncio.TaskGroup() as tasks:
            working, remembering = tasks.create_task(self._supervisor.run()), tasks.create_task(outage.run())
            async with serve_asgi(listening, self._config.ops_host, self._config.ops_port) as local:
                self._listeners.append(local)
                _log.info(
                    "listening",
                    extra={"for": "health, metrics and local clients" if local_clients else "health and metrics", "url": local.url},
                )
                self.local_url = local.url
                self._notifier.ready()
                try:
                    await (self._run_in_fleet() if self._parts.local is None else self._run_alone(self._parts.local))
                finally:
                    self._notifier.stopping()
            working.cancel()
            remembering.cancel()

    async def _run_in_fleet(self) -> None:
        identity = await wait_for_identity(self._parts.identity, self._config.name, self._notifier, self._clock)
        tls = Tls(identity.serving_cert_file, identity.key_file, identity.gateways_ca_file)
        gateways = GatewayDoor(self._serving)
        async with (
            self._clients(identity),
            serve_asgi(gateways, self._config.serving_host, self._config.serving_port, tls=tls) as listener,
        ):
            self._listeners.append(listener)
            url = f"https://{bracketed(self._config.advertise_host)}:{listener.port}"
            _log.info("listening", extra={"for": "gateways", "url": listener.url, "advertised": url})
            await self._converge(identity, url, listener)

    async def _run_alone(self, local: Local) -> None:
        await local.assign(self._ledger)
        files = local.files
        bytes = Bytes(cache=files, fetcher=files, grants=files, clock=self._clock, jitter=self._jitter, on_change=self._wake.set)
        async with self._clients(None), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after(bytes, self._config.name, ""))
            tasks.create_task(local.keep(self._ledger))

    def _outage(self) -> Outage:
        return Outage(
            self._config.data_dir,
            self._disk,
            boot_id=self._sensors.boot_id(),
            clock=self._clock,
            reports=self.reports,
            read=lambda: read_series(self.metrics),
            in_session=lambda: not self.no_session_reason,
        )

    @contextlib.asynccontextmanager
    async def _clients(self, identity: Identity | None) -> AsyncIterator[None]:
        """Listen for clients of other machines, if the operator wants it; without an identity the operator has named a certificate."""
        config = self._config
        if not config.client_host:
            yield
            return
        door = KeyDoor(self._serving, keys=config.api_keys, clock=self._clock, origins=config.cors_origins)
        cert, key = config.client_tls_cert, config.client_tls_key
        if identity is not None:
            cert, key = cert or identity.serving_cert_file, key or identity.key_file
        assert cert is not None
        assert key is not None
        tls = Tls(cert, key)
        async with serve_asgi(door, config.client_host, config.client_port, tls=tls) as listener:
            self._listeners.append(listener)
            _log.info("listening", extra={"for": "clients with an API key", "url": listener.url})
            yield

    async def _converge(self, identity: Identity, serving_url: str, listener: Listener) -> None:
        """Keep the session, the loop and the certificates."""
        session = self._session = SessionRunner(
            identity=identity,
            machine=lambda: self._machine(serving_url),
            clock=self._clock,
            jitter=self._jitter,
            ledger=self._ledger,
            reports=self.reports,
            logs=BoardLogs(self._journals, self._clock),
            on_change=lambda: self._gauges.show_session(open=session.connection.number > 0),
            on_time=self._time.tell,
        )
        keeping = renewing(
            identity,
            self._sensors.machine_id(),
            listener=listener,
            session_lost_seconds=lambda: session.lost_seconds,
            time=self._time,
            clock=self._clock,
            jitter=self._jitter,
            metrics=self._gauges,
            renew=self._parts.renew,
        )
        fetcher = Fetcher(self._cache, fleet_trust(identity.ca_file), self._disk, self.metrics)
        bytes = Bytes(cache=self._cache, fetcher=fetcher, grants=session, clock=self._clock, jitter=self._jitter, on_change=self._wake.set)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after(bytes, identity.name, serving_url))
            tasks.create_task(session.run())
            tasks.create_task(keeping.run())
            if listener.context is not None:
                tasks.create_task(follow_dates(listener.context, self._time, self._clock))

    async def _look_after(self, bytes: Bytes, board: str, serving_url: str) -> None:
        """Keep the loop, whoever watches the hardware, and what the service manager is told."""
        watch = self._parts.watch(self._gauges, self._wake.set) if self._parts.watch is not None else None
        simulated = self._parts.simulated_runtimes
        loop = Loop(
            clock=self._clock,
            wake=self._wake,
            ledger=self._ledger,
            cache=self._cache,
            bytes=bytes,
            supervisor=self._supervisor,
            traffic=self._serving,
            sensors=self._sensors,
            reports=self.reports,
            metrics=self._gauges,
            abilities=self._abilities(serving_url),
            publish=lambda served: self._routes.replace(tuple(route_of(one, board, simulated) for one in served)),
            demand=self._demand,
            prompt_caches=self._prompt_caches,
            problems=self._parts.library_problems,
            watch=watch,
            passed=self._notifier.passed,
            look_seconds=self._config.look_seconds,
        )
        async with asyncio.TaskGroup() as tasks:
            if watch is not None:
                watch.look()
                tasks.create_task(watch.run())
            tasks.create_task(loop.run())
            tasks.create_task(self._tell_status())

    async def _tell_status(self) -> None:
        """Tell the service manager how the board stands, whenever that changes."""
        seen = 0
        while True:
            seen = await self.reports.changed(seen)
            if self.reports.state is not None:
                self._notifier.status(status_sentence(self.reports.state))

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
            libraries=installed_libraries(self._supervisor.runtimes, self._parts.libraries),
            tables=self._parts.tables,
            cores=self._sensors.cores(),
            memory_bytes=facts.allocatable_memory_bytes,
            serving_url=serving_url,
            npu_lock_path=str(npu_lock(self._config)),
            prompt_cache_dir=str(self._prompt_caches.directory.absolute()),
        )

    def _not_ready(self) -> str:
        if self.reports.state is None:
            return "the board has not joined its fleet yet, or is starting"
        return ""
