"""The agent, wired: the only file that knows every part of it.

In: a `Config`. Out: a board that serves. Called by `agent/__main__.py`. Time, randomness, ids and every object that holds something open
are made here.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from agent.board import kernel
from agent.board.facts import Overrides
from agent.board.sensors import Sensors
from agent.config import Config
from agent.fetching import Bytes
from agent.ledger import Ledger
from agent.loop import Loop
from agent.metrics import AgentMetrics
from agent.planning.values import Abilities, Served
from agent.reports import Reports
from agent.serving.app import Serving
from agent.serving.routes import Route, Routes
from agent.session.runner import Machine, SessionRunner
from agent.workers import backends
from agent.workers.supervisor import Supervisor
from rkfleet.clock import SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.errors import FailedPrecondition
from rkfleet.identity import Enrolment, Identity, ensure_identity
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, bracketed, is_loopback, ops_app, serve_asgi
from rkfleet.process import lock_data_dir, run_until_stopped

__all__ = ["run"]

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
        await run_until_stopped(_Agent(config).run(), config.lifeline)


class _Agent:
    """The parts that need no identity, made once; `run` makes the rest as soon as there is one."""

    def __init__(self, config: Config) -> None:
        self._config: Final = config
        self._clock: Final = SystemClock()
        self._jitter: Final = random.Random()  # noqa: S311 (spreads retries; keys come from `secrets`)
        self._disk: Final = SystemDisk()
        self._wake: Final = asyncio.Event()
        self._metrics: Final = Metrics("agent")
        self._gauges: Final = AgentMetrics(self._metrics)
        self._routes: Final = Routes()
        self._serving: Final = Serving(self._routes, self._metrics, self._clock)
        self._reports: Final = Reports(self._clock)
        self._ledger: Final = Ledger(config.data_dir, self._disk, self._wake.set)
        self._cache: Final = Cache(config.data_dir, config.artifact_limit_bytes, self._disk, self._metrics)
        installed = (backends.llamacpp(new_api_key=lambda: secrets.token_urlsafe(24)),)
        self._supervisor: Final = Supervisor(
            [backend for backend in installed if backend is not None],
            clock=self._clock,
            random=self._jitter,
            metrics=self._metrics,
            on_change=self._wake.set,
        )
        overrides = Overrides(memory_bytes=config.memory_bytes, artifact_limit_bytes=config.artifact_limit_bytes)
        self._sensors: Final = Sensors(config.filesystem_root, config.data_dir, overrides, self._supervisor.runtimes)

    async def run(self) -> None:
        """Enrol if that is still to do, then serve."""
        # /v1 asks nobody for a key here, so it is for this machine alone: other machines come through the HTTPS listener below.
        local_clients = is_loopback(self._config.ops_host)
        ops = ops_app(self._not_ready, self._metrics.text, otherwise=self._serving if local_clients else None)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._supervisor.run())
            async with serve_asgi(ops, self._config.ops_host, self._config.ops_port) as local:
                _log.info(
                    "listening",
                    extra={"for": "health, metrics and local clients" if local_clients else "health and metrics", "url": local.url},
                )
                identity = await self._identity()
                tls = Tls(identity.serving_cert_file, identity.key_file, identity.gateways_ca_file)
                async with serve_asgi(self._serving, self._config.serving_host, self._config.serving_port, tls=tls) as listener:
                    url = f"https://{bracketed(self._config.advertise_host)}:{listener.port}"
                    _log.info("listening", extra={"for": "gateways", "url": listener.url, "advertised": url})
                    await self._converge(identity, url)
            working.cancel()

    async def _converge(self, identity: Identity, serving_url: str) -> None:
        """Keep the session and the loop."""
        session = SessionRunner(
            identity=identity,
            machine=lambda: self._machine(serving_url),
            clock=self._clock,
            jitter=self._jitter,
            ledger=self._ledger,
            reports=self._reports,
            on_change=lambda: self._gauges.show_session(open=session.connection.number > 0),
        )
        fetcher = Fetcher(self._cache, _trust(identity.ca_file), self._disk, self._metrics)
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
        config = self._config
        enrolment = Enrolment(
            role="board",
            name=config.name,
            controller=config.controller,
            token=config.token,
            ca_pin=config.ca_pin,
            machine_id=kernel.observe_machine_id(config.filesystem_root),
        )
        directory = config.data_dir / "identity"
        given = enrolment if config.token or config.token_file else None
        identity = await ensure_identity(directory, given, self._clock, self._jitter, config.token_file)
        if identity.name != config.name:
            raise FailedPrecondition(f"{directory} is the identity of board {identity.name}, not of {config.name}; use another --data-dir")
        return identity

    def _machine(self, serving_url: str) -> Machine:
        root = self._config.filesystem_root
        return Machine(
            machine_id=kernel.observe_machine_id(root),
            boot_id=kernel.observe_boot_id(root),
            facts=self._sensors.facts(self._cache.used_bytes()),
            serving_url=serving_url,
        )

    def _abilities(self, serving_url: str) -> Abilities:
        return Abilities(
            libraries={runtime.name: runtime.version for runtime in self._supervisor.runtimes},
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=self._sensors.facts(self._cache.used_bytes()).allocatable_memory_bytes,
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
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:
        raise FailedPrecondition(f"identity file {ca_file} cannot be used: {error}") from error
