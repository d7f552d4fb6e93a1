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
import os
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.artifacts.prompt_caches import PromptCaches
from agent.board.clock_control import ClockControl
from agent.board.facts import Overrides
from agent.board.kernel_log import follow_kernel_log
from agent.board.sensors import MachineSensors, Sensors
from agent.board.telemetry import Telemetry
from agent.config import Config
from agent.demand import Demand
from agent.fetching import Bytes, Fetches, Grants, Whole
from agent.journal import Journals
from agent.ledger import Ledger
from agent.logs import BoardLogs
from agent.loop import Loop, Watch
from agent.metrics import AgentMetrics
from agent.notify import Notifier
from agent.outage import Outage
from agent.own_log import own_log
from agent.planning.values import Abilities, InstalledLibrary, Served
from agent.reports import Reports, status_sentence
from agent.samples import read_series
from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.session.runner import Machine, SessionRunner
from agent.watch import BoardWatch
from agent.workers import backends
from agent.workers.base import Backend
from agent.workers.libraries import Library, find_libraries
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

__all__ = ["Agent", "Local", "LocalArtifacts", "Parts", "machine_parts", "npu_lock", "route_of", "run"]

# Disk and hash work, one fetch and one verification at a time, and the ledger beside them. Every thread keeps memory that it once used.
THREADS_MAX: Final = 3

RUN_DIRECTORY: Final = "run/rkfleet"

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


class LocalArtifacts(Whole, Grants, Fetches, Protocol):
    """Artifacts that nobody sends: how the loop of a board without a fleet gets its bytes."""


class Local(Protocol):
    """What a board without a fleet runs, and from which files."""

    @property
    def files(self) -> LocalArtifacts:
        """Return the files."""
        ...

    async def assign(self, ledger: Ledger) -> None:
        """Have the ledger say what is to run.

        Raises:
            FleetError: It cannot.
        """
        ...

    async def keep(self, ledger: Ledger) -> None:
        """Assign anew whenever that has changed, until cancelled."""
        ...


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a board the board that it is.

    Attributes:
        backends: What can be started on it.
        sensors: The machine.
        identity: Waits until the board has an identity, enrolling if need be, and returns it. Not asked for where there is `local`.
        local: What it runs without a fleet; None for a board of a fleet.
        renew: Renews the certificates of that identity.
        tables: The benchmark table behind each runtime that is simulated, by the runtime's name.
        simulated: Whether the hardware does not exist; said with every answer and figure.
        libraries: Libraries of the NPU's runtime that can be used, the newest first.
        library_problems: Sentences about those that cannot.
        watch: Makes who looks after the hardware, given the gauges and what to call when a condition has changed; None for nobody.
    """

    backends: tuple[Backend, ...]
    sensors: Sensors
    identity: Callable[[], Awaitable[Identity]]
    local: Local | None = None
    renew: Renew = renew_in_child
    tables: Mapping[str, Table] = {}
    simulated: bool = False
    libraries: tuple[Library, ...] = ()
    library_problems: tuple[str, ...] = ()
    watch: Callable[[AgentMetrics, Callable[[], None]], Watch] | None = None


def machine_parts(config: Config, clock: Clock, jitter: random.Random) -> Parts:
    """Return the parts of a board that is the machine this runs on."""
    cpu = backends.llamacpp(new_api_key=_new_api_key)
    libraries = find_libraries(config.runtime_libraries, config.filesystem_root)
    for problem in libraries.problems:
        _log.warning("a runtime library is not used", extra={"cause": problem})
    for one in libraries.usable:
        about = {"file": str(one.path), "version": one.version or "unknown", "generation": one.generation, "how": one.how}
        _log.info("runtime library", extra=about)
    follow_kernel = partial(follow_kernel_log, config.filesystem_root)
    npu = tuple(backends.rkllm(one, new_api_key=_new_api_key, follow_kernel=follow_kernel) for one in libraries.usable)
    installed = (*((cpu,) if cpu is not None else ()), *npu)
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

    def watch(metrics: AgentMetrics, on_change: Callable[[], None]) -> Watch:
        control = ClockControl(config.filesystem_root, config.data_dir / "clocks.json", config.clocks_helper)
        telemetry = Telemetry(config.filesystem_root, agent_pid=os.getpid())
        return BoardWatch(telemetry, control, clock=clock, metrics=metrics, on_change=on_change)

    return Parts(
        backends=installed,
        sensors=sensors,
        identity=identity,
        libraries=libraries.usable,
        library_problems=libraries.problems,
        watch=watch,
    )


def _new_api_key() -> str:
    return secrets.token_urlsafe(24)


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
                self.local_url = local.url
                self._notifier.ready()
                try:
                    await (self._run_in_fleet() if self._parts.local is None else self._run_alone(self._parts.local))
                finally:
                    self._notifier.stopping()
            working.cancel()
            remembering.cancel()

    async def _run_in_fleet(self) -> None:
        identity = await self._identity()
        tls = Tls(identity.serving_cert_file, identity.key_file, identity.gateways_ca_file)
        async with serve_asgi(self._serving, self._config.serving_host, self._config.serving_port, tls=tls) as listener:
            self._listeners.append(listener)
            url = f"https://{bracketed(self._config.advertise_host)}:{listener.port}"
            _log.info("listening", extra={"for": "gateways", "url": listener.url, "advertised": url})
            await self._converge(identity, url, listener)

    async def _run_alone(self, local: Local) -> None:
        await local.assign(self._ledger)
        files = local.files
        bytes = Bytes(cache=files, fetcher=files, grants=files, clock=self._clock, jitter=self._jitter, on_change=self._wake.set)
        async with asyncio.TaskGroup() as tasks:
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
        renewing = self._renewing(identity, session, listener)
        fetcher = Fetcher(self._cache, _trust(identity.ca_file), self._disk, self.metrics)
        bytes = Bytes(cache=self._cache, fetcher=fetcher, grants=session, clock=self._clock, jitter=self._jitter, on_change=self._wake.set)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after(bytes, identity.name, serving_url))
            tasks.create_task(session.run())
            tasks.create_task(renewing.run())
            if listener.context is not None:
                tasks.create_task(follow_dates(listener.context, self._time, self._clock))

    async def _look_after(self, bytes: Bytes, board: str, serving_url: str) -> None:
        """Keep the loop, whoever watches the hardware, and what the service manager is told."""
        watch = self._parts.watch(self._gauges, self._wake.set) if self._parts.watch is not None else None
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
            publish=lambda served: self._routes.replace(tuple(route_of(one, board) for one in served)),
            demand=self._demand,
            prompt_caches=self._prompt_caches,
            problems=self._parts.library_problems,
            watch=watch,
            passed=self._notifier.passed,
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
        async with asyncio.TaskGroup() as tasks:
            alive = tasks.create_task(self._stay_alive())
            identity = await self._parts.identity()
            alive.cancel()
        if identity.name != self._config.name:
            raise FailedPrecondition(
                f"{identity.directory} is the identity of board {identity.name}, not of {self._config.name}; use another --data-dir"
            )
        return identity

    async def _stay_alive(self) -> None:
        """Feed the watchdog while there is no loop yet whose passes do: a controller may be away for days."""
        self._notifier.status("waiting until a controller lets this board join its fleet")
        while self._notifier.ping_seconds:
            self._notifier.passed()
            await self._clock.sleep(self._notifier.ping_seconds)

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
            libraries=self._libraries(),
            tables=self._parts.tables,
            cores=self._sensors.cores(),
            memory_bytes=facts.allocatable_memory_bytes,
            serving_url=serving_url,
            npu_lock_path=str(npu_lock(self._config)),
            prompt_cache_dir=str(self._prompt_caches.directory.absolute()),
        )

    def _libraries(self) -> dict[str, tuple[InstalledLibrary, ...]]:
        files = {("rkllm", one.version): one for one in self._parts.libraries}
        found: dict[str, tuple[InstalledLibrary, ...]] = {}
        for runtime in self._supervisor.runtimes:
            file = files.get((runtime.name, runtime.version))
            path, generation = (str(file.path.absolute()), file.generation) if file is not None else ("", "")
            one = InstalledLibrary(version=runtime.version, path=path, generation=generation)
            found[runtime.name] = (*found.get(runtime.name, ()), one)
        return found

    def _not_ready(self) -> str:
        if self.reports.state is None:
            return "the board has not joined its fleet yet, or is starting"
        return ""


def route_of(served: Served, board: str) -> Route:
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
        max_concurrent=served.max_concurrent,
        max_queued=replica.serving.max_queued,
        max_output_tokens=replica.serving.max_output_tokens,
        context_tokens=replica.serving.context_tokens,
        draining=served.draining,
        waiting_reason=served.waiting,
        on_demand=served.on_demand,
        shifts=replica.serving.context_overflow == "Shift",
    )


def npu_lock(config: Config) -> Path:
    """Return the file whose lock a worker holds while it uses the NPU: one for the machine where its directory was made for that.

    Without it two agents of one machine would not know of each other; the unit that starts the agent makes the directory.
    """
    shared = config.filesystem_root / RUN_DIRECTORY
    directory = shared if os.access(shared, os.W_OK | os.X_OK) else config.data_dir.absolute()
    return directory / "npu.lock"


def _trust(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts servers of the fleet and nobody else."""
    try:
        return ignore_dates(ssl.create_default_context(cafile=str(ca_file)))
    except OSError as error:
        raise FailedPrecondition(f"identity file {ca_file} cannot be used: {error}") from error
