"""The controller, wired: the only file that knows every part, and the only one that makes clocks, ids, randomness and listeners.

In: a `Config`. Out: a process that serves the API, holds the boards' sessions and runs the loops until it is cancelled. Order: certificates
and tokens first (the registry waits for them), then the store, then what works on it, then the listeners, so that nobody is let in before
there is somebody to answer.
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
from typing import Final
from urllib.parse import urlsplit

from controller.api.admission import Admission
from controller.api.app import create_api
from controller.api.enrollment import Enrollment
from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.api.namespaces import DEFAULT_NAMESPACE, ensure_namespace
from controller.api.registry_tokens import registry_routes
from controller.api.renewals import Renewals
from controller.api.samples import sample_routes
from controller.config import Config
from controller.machinery.collection import gentle_collection, put_aside
from controller.machinery.events import EventRecorder
from controller.machinery.loop_lag import watch_loop_lag
from controller.machinery.manager import Manager
from controller.outages import Outages
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter
from controller.reconcilers.loops import Loops, add_loops
from controller.sessions.hub import Hub
from controller.sessions.seams import Seams
from controller.sessions.servicer import serve_sessions
from controller.store.sql.store import SqlStore
from controller.trust.pki import Pki
from controller.trust.pull_tokens import GrantIssuer, OwnTokens, TokenSigner
from controller.trust.served import follow_certificate
from controller.trust.tokens import Tokens
from rkfleet import __version__
from rkfleet.client import Cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, ops_app, serve_asgi
from rkfleet.registry_client import RegistryClient

__all__ = ["run"]

SWITCH_SECONDS: Final = 0.001  # A thread that plans gives the interpreter back to the loop after so long, not after Python's 5 ms.
ADMIN: Final = "admin"

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
    pki = await asyncio.to_thread(_ensure_pki, config, clock)
    tokens = Tokens(config.data_dir / "tokens.json", clock, os.urandom)
    await asyncio.to_thread(_ensure_kubeconfig, config, pki, tokens)
    signer = TokenSigner((pki.directory / "registry-signing.key").read_bytes(), clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(gentle_collection())
        store = await stack.enter_async_context(SqlStore.open(config.data_dir / "store.db", KINDS, metrics=metrics))
        await ensure_namespace(store, DEFAULT_NAMESPACE, clock=clock, ids=_new_id)
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
    text = kubeconfig(server=server, ca_pem=pki.ca_pem("servers").encode(), token=tokens.issue_api_token(ADMIN, "admin"))
    write_kubeconfig(config.kubeconfig, text)


class _Program:
    """The parts that work on the store, and the listeners in front of them."""

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
        self._outages: Final = Outages(config.data_dir / "outages")
        self._random: Final = random.Random()  # noqa: S311 (jitter)
        self._stopping: Final = asyncio.Event()
        self._events: Final = EventRecorder(store, clock, _new_id, metrics=metrics)
        self._manager: Final = Manager(clock=clock, random=self._random, metrics=metrics)
        applier = Applier(store, clock, _new_id, self._events)
        minter = AssignmentMinter(store, applier)
        seams = Seams(
            store=store,
            clock=clock,
            jitter=self._random,
            new_uid=_new_id,
            minter=minter,
            issuer=GrantIssuer(signer, config.registry_url, lambda board: self._hub.assignment_of(board)),  # noqa: PLW0108 (made below)
            tokens=tokens,
            record=self._events.record,
            metrics=metrics,
            on_presence=lambda board: self._loops.wake_board(board),  # noqa: PLW0108 (made below)
            samples=self._outages,
        )
        self._hub: Final = Hub(fleet_id=pki.fleet_id, controller=f"{socket.gethostname()}-{os.getpid()}", seams=seams)
        self._loops: Final[Loops] = add_loops(
            self._manager,
            store,
            KINDS,
            clock=clock,
            random=self._random,
            applier=applier,
            minter=minter,
            sessions=self._hub,
            offers=self._hub,
            identities=self._hub,
            blobs=registry,
            metrics=metrics,
        )

    async def serve(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the listeners and run the loops until cancelled."""
        config = self._config
        session_address = f"{config.advertise_host}:{config.grpc_port}"
        enrollment = Enrollment(
            pki=self._pki,
            tokens=self._tokens,
            store=self._store,
            clock=self._clock,
            new_uid=_new_id,
            session_address=session_address,
        )
        renewals = Renewals(
            pki=self._pki,
            tokens=self._tokens,
            store=self._store,
            clock=self._clock,
            metrics=self._metrics,
            session_address=session_address,
        )
        api = create_api(
            store=self._store,
            registry=KINDS,
            admission=Admission(KINDS),
            identify=self._tokens.identify,
            clock=self._clock,
            ids=_new_id,
            metrics=self._metrics,
            stopping=self._stopping,
            version=__version__,
            open_log=self._hub.open_log,
            extra_routes=[
                *enrollment.routes(),
                *renewals.routes(),
                *sample_routes(self._tokens.identify, self._store, self._outages),
                *registry_routes(self._tokens.identify, self._signer, config.registry_url, self._clock),
            ],
        )
        certificate, key = self._pki.server_files("controller")
        await stack.enter_async_context(serve_asgi(ops_app(self._not_ready, self._metrics.text), config.ops_host, config.ops_port))
        listener = await stack.enter_async_context(serve_asgi(api, config.host, config.api_port, tls=Tls(certificate, key)))
        stack.callback(self._stopping.set)
        await stack.enter_async_context(serve_sessions(self._hub, self._pki, config.host, config.grpc_port, self._metrics))
        _log.info("serving", extra={"api_port": config.api_port, "grpc_port": config.grpc_port, "fleet": self._pki.fleet_id})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(put_aside(self._clock))
            tasks.create_task(watch_loop_lag(self._clock, self._metrics))
            tasks.create_task(self._events.run())
            tasks.create_task(self._manager.run())
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

    def _not_ready(self) -> str:
        """Return why the controller cannot do all of its work yet; empty when it can."""
        return self._store.trouble if self._manager.synced else "the loops wait for the first list of each kind"
