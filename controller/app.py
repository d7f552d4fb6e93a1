"""The controller, wired: the only file that knows every part, and the only one that makes clocks, ids, randomness and listeners.

In: a `Config`. Out: a process that serves the API and, while it leads, holds the boards' sessions and runs the loops (`leader.py`), until
it is cancelled. Order: certificates and tokens first (the registry waits for them), then the store, then what works on it, then the
listeners, so that nobody is let in before there is somebody to answer.

A controller whose store is a file leads from the start. Those that share a database elect one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import sys
import uuid
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from controller.api.admission import Admission
from controller.api.api_tokens import api_token_routes
from controller.api.app import create_api
from controller.api.enrollment import Enrollment
from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.api.logs import Ask
from controller.api.namespaces import DEFAULT_NAMESPACE, ensure_namespace
from controller.api.registry_tokens import registry_routes
from controller.api.renewals import Renewals
from controller.api.samples import sample_routes
from controller.audit import AuditLog
from controller.backups.schedule import Schedule, take_in_child
from controller.config import Config
from controller.election import LEASE_NAMESPACE, Election
from controller.leader import Leader
from controller.machinery.collection import gentle_collection, put_aside
from controller.machinery.loop_lag import watch_loop_lag
from controller.outages import Outages
from controller.store.base import Store
from controller.store.sql.sealing import Sealing, read_keys
from controller.store.sql.store import SqlStore
from controller.trust.encryption_key import ensure_key_file
from controller.trust.pki import Pki
from controller.trust.pull_tokens import OwnTokens, TokenSigner
from controller.trust.served import follow_certificate
from controller.trust.tokens import Tokens
from rkfleet import __version__
from rkfleet.client import Cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from rkfleet.metric_names import CONTROLLER_LEADER
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, ops_app, serve_asgi
from rkfleet.registry_client import RegistryClient

__all__ = ["run"]

SWITCH_SECONDS: Final = 0.001  # A thread that plans gives the interpreter back to the loop after so long, not after Python's 5 ms.
ADMIN: Final = "admin"
TOKENS_SECONDS: Final = (
    1.0  # How long a token that another controller made or ended is not known here; a lock and an index look-up each time.
)

_log = logging.getLogger(__name__)


def _new_id() -> str:
    return str(uuid.uuid4())  # noqa: TID251 (the one source of ids)


async def run(config: Config) -> None:
    """Serve until cancelled.

    Raises:
        FailedPrecondition: A file of the data directory cannot be used, or a port is taken.
        Unavailable: The disk refuses.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    clock = SystemClock()
    metrics = Metrics("controller")
    key_file = config.encryption_key
    is_new = not (config.pki_dir / "fleet.json").exists()  # So the key is made first: after a crash between both, it is still new.
    may_make = config.encryption_key_file is None and (is_new or not config.database_url)
    await asyncio.to_thread(ensure_key_file, key_file, os.urandom, may_make=may_make)
    pki = await asyncio.to_thread(_ensure_pki, config, clock)
    sealing = Sealing(await asyncio.to_thread(read_keys, key_file), os.urandom, str(key_file))
    tokens = await asyncio.to_thread(Tokens, config.database_url or config.data_dir / "tokens.json", clock, os.urandom)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(tokens.close)
        await asyncio.to_thread(_ensure_kubeconfig, config, pki, tokens)
        signer = TokenSigner((pki.directory / "registry-signing.key").read_bytes(), clock)
        stack.enter_context(gentle_collection())
        place = config.database_url or config.data_dir / "store.db"
        store = await stack.enter_async_context(SqlStore.open(place, KINDS, fleet=pki.fingerprint, sealing=sealing, metrics=metrics))
        for namespace in (DEFAULT_NAMESPACE, LEASE_NAMESPACE) if config.database_url else (DEFAULT_NAMESPACE,):
            await ensure_namespace(store, namespace, clock=clock, ids=_new_id)
        registry_tls = Cluster(config.registry_url, pki.ca_pem("servers")).ssl_context()
        registry = await stack.enter_async_context(RegistryClient(config.registry_url, registry_tls, OwnTokens(signer), clock))
        program = _Program(
            config=config, clock=clock, metrics=metrics, pki=pki, tokens=tokens, signer=signer, store=store, registry=registry
        )
        await program.serve(stack)


def _ensure_pki(config: Config, clock: Clock) -> Pki:
    registry_host = urlsplit(config.registry_url).hostname or config.advertise_host
    pki = Pki.ensure(
        config.pki_dir, (config.advertise_host, config.host), clock.now(), f"f-{_new_id()[:8]}", registry_hosts=(registry_host, config.host)
    )
    if config.registry_files_out is not None:
        pki.copy_registry_files(config.registry_files_out)
    return pki


def _ensure_kubeconfig(config: Config, pki: Pki, tokens: Tokens) -> None:
    """Write the admin's kubeconfig on the first start, and again when it was removed (which ends the token that it had)."""
    if config.kubeconfig.exists():
        return
    server = f"https://{config.advertise_host}:{config.api_port}"
    name = f"{ADMIN}@{config.advertise_host}:{config.api_port}" if config.database_url else ADMIN  # Each of several has its own kubeconfig.
    text = kubeconfig(server=server, ca_pem=pki.ca_pem("servers").encode(), token=tokens.issue_api_token(name, "admin"))
    write_kubeconfig(config.kubeconfig, text)


class _Program:
    """The API in front of the store, and the work of the leader behind it."""

    def __init__(
        self,
        *,
        config: Config,
        clock: Clock,
        metrics: Metrics,
        pki: Pki,
        tokens: Tokens,
        signer: TokenSigner,
        store: SqlStore,
        registry: RegistryClient,
    ) -> None:
        self._config: Final = config
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._pki: Final = pki
        self._tokens: Final = tokens
        self._signer: Final = signer
        self._store: Final = store
        self._registry: Final = registry
        self._outages: Final = Outages(config.data_dir / "outages")
        self._random: Final = random.Random()  # noqa: S311 (jitter)
        self._stopping: Final = asyncio.Event()
        self._identity: Final = f"{socket.gethostname()}-{os.getpid()}"
        self._leader: Leader | None = None
        self._audit: AuditLog | None = None
        self._election: Final = Election(
            store,
            clock=clock,
            ids=_new_id,
            identity=f"{self._identity}-{_new_id()[:8]}",
            chance=self._random,
            lease_seconds=config.lease_seconds,
        )

    async def serve(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the listeners, and lead when it is this controller's turn, until cancelled."""
        config = self._config
        certificate, key = self._pki.server_files("controller")
        if config.audit_log is not None:
            self._audit = stack.enter_context(AuditLog(config.audit_log, self._clock, self._metrics))
        await stack.enter_async_context(serve_asgi(ops_app(self._not_ready, self._metrics.text), config.ops_host, config.ops_port))
        listener = await stack.enter_async_context(serve_asgi(self._api(), config.host, config.api_port, tls=Tls(certificate, key)))
        stack.callback(self._stopping.set)
        _log.info("serving", extra={"api_port": config.api_port, "grpc_port": config.grpc_port, "fleet": self._pki.fleet_id})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(put_aside(self._clock))
            tasks.create_task(watch_loop_lag(self._clock, self._metrics))
            if config.backup_every_seconds:
                tasks.create_task(self._backups().run())
            if config.database_url:
                tasks.create_task(self._follow_tokens())
            tasks.create_task(self._election.run(self._lead) if config.database_url else self._work(self._store))
            tasks.create_task(
                follow_certificate(
                    certificate,
                    "controller",
                    listener.reload,
                    clock=self._clock,
                    metrics=self._metrics,
                    renew=lambda: _ensure_pki(config, self._clock),
                )
            )

    async def _follow_tokens(self) -> None:
        """Take in what other controllers do to tokens; while the database is away, those that are known stay so."""
        while True:
            await self._clock.sleep(TOKENS_SECONDS)
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self._tokens.refresh)

    def _backups(self) -> Schedule:
        config = self._config
        return Schedule(
            config.data_dir,
            every_seconds=config.backup_every_seconds,
            kept=config.backups_kept,
            clock=self._clock,
            metrics=self._metrics,
            take=lambda target: take_in_child(config.data_dir, target, with_store=not config.database_url),
        )

    def _api(self) -> ASGIApp:
        config = self._config
        enrollment = Enrollment(
            pki=self._pki,
            tokens=self._tokens,
            store=self._store,
            clock=self._clock,
            new_uid=_new_id,
            session_address=config.sessions_at,
        )
        renewals = Renewals(
            pki=self._pki,
            tokens=self._tokens,
            store=self._store,
            clock=self._clock,
            metrics=self._metrics,
            session_address=config.sessions_at,
        )
        return create_api(
            store=self._store,
            registry=KINDS,
            admission=Admission(KINDS),
            identify=self._tokens.identify,
            clock=self._clock,
            ids=_new_id,
            metrics=self._metrics,
            stopping=self._stopping,
            version=__version__,
            open_log=self._open_log,
            audit=self._audit,
            extra_routes=[
                *enrollment.routes(),
                *renewals.routes(),
                *api_token_routes(self._tokens),
                *sample_routes(self._tokens.identify, self._store, self._outages),
                *registry_routes(self._tokens.identify, self._signer, config.registry_url, self._clock),
            ],
        )

    async def _lead(self, term: int) -> None:
        await self._work(self._store.leading(term))

    async def _work(self, store: Store) -> None:
        """Do what only the leader does, until cancelled."""
        self._leader = leader = Leader(
            config=self._config,
            identity=self._identity,
            clock=self._clock,
            ids=_new_id,
            chance=self._random,
            metrics=self._metrics,
            pki=self._pki,
            tokens=self._tokens,
            signer=self._signer,
            store=store,
            registry=self._registry,
            outages=self._outages,
        )
        self._metrics.gauge(CONTROLLER_LEADER).set(1)
        try:
            await leader.run()
        finally:
            self._leader = None
            self._metrics.gauge(CONTROLLER_LEADER).set(0)

    def _open_log(self, board: str) -> AbstractContextManager[Ask]:
        if self._leader is None:
            leads = self._election.holder or "nobody"
            raise Unavailable(f"board {board} cannot be asked for logs here, because this controller is a standby; {leads} leads")
        return self._leader.open_log(board)

    def _not_ready(self) -> str:
        """Return why the controller cannot do all of its work yet; empty when it can. A standby has no work but to serve the API."""
        if self._leader is not None and not self._leader.synced:
            return "the loops wait for the first list of each kind"
        return self._store.trouble
