"""A real API for tests: SQLite store, admission, certificates and tokens of the product, behind TLS on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from controller.api.admission import Admission
from controller.api.api_tokens import api_token_routes
from controller.api.app import create_api
from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.api.namespaces import ensure_namespace
from controller.store.base import Store
from controller.store.sql.store import SqlStore
from controller.trust.pki import Pki
from controller.trust.tokens import Tokens
from rkfleet.clock import Clock, SystemClock
from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Registry
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, serve_asgi

Json = dict[str, Any]


def new_id() -> str:
    """Return a random UUID as text."""
    return str(uuid.UUID(bytes=os.urandom(16), version=4))


@cache
def admission_of(registry: Registry) -> Admission:
    """Return the admission of a registry; compiling all rules takes long enough to do it once per test process."""
    return Admission(registry)


class RunningApi:
    """One running API.

    Attributes:
        url: Its base URL.
        store: Its store, for what only controllers write.
        tokens: Those that it knows.
        token: Token of an admin.
        gateway_token: Token with the role gateway.
        kubeconfig: File with the admin's token.
        client: HTTP client with the admin's token.
        ca_pem: Certificates of the authority that vouches for it.
        context: TLS context of who trusts it.
        metrics: What the API counted.
        stopping: Ends its watches.
    """

    def __init__(
        self, url: str, store: Store, tokens: Tokens, pki: Pki, directory: Path, *, metrics: Metrics, stopping: asyncio.Event
    ) -> None:
        self.url = url
        self.metrics = metrics
        self.stopping = stopping
        self.store = store
        self.tokens = tokens
        self.token = tokens.issue_api_token("ada", "admin")
        self.gateway_token = tokens.issue_api_token("gw-1", "gateway")
        self.kubeconfig = directory / "kubeconfig"
        write_kubeconfig(self.kubeconfig, kubeconfig(server=url, ca_pem=pki.ca_pem("servers").encode(), token=self.token))
        self.ca_pem = pki.ca_pem("servers")
        self.context = ssl.create_default_context(cadata=self.ca_pem)
        self.client = httpx2.AsyncClient(
            base_url=url,
            verify=self.context,
            headers={"authorization": f"Bearer {self.token}"},
            limits=httpx2.Limits(max_connections=8),  # each handshake costs a test 10 ms
            timeout=20,
        )

    async def call(self, method: str, path: str, body: Any = None, **keywords: Any) -> httpx2.Response:
        """Send a request with a JSON body."""
        content = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.client.request(method, path, content=content, **keywords)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, **params: str) -> AsyncIterator[Callable[[], Any]]:
        """Open a watch; what is given returns the next event, or None at its end."""
        async with self.client.stream("GET", path, params={"watch": "true", **params}) as response:
            assert response.status_code == 200, await response.aread()
            lines = response.aiter_lines()

            async def following() -> Json | None:
                async with asyncio.timeout(10):
                    async for line in lines:
                        event: Json = msgspec.json.decode(line)
                        return event
                return None

            yield following


@contextlib.asynccontextmanager
async def running_api(
    directory: Path,
    *,
    registry: Registry = KINDS,
    clock: Clock | None = None,
    wrap: Callable[[SqlStore], Store] = lambda store: store,
    extra_routes: Sequence[BaseRoute] = (),
    store_options: Mapping[str, Any] | None = None,
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    place: Path | str = "",
    port: int = 0,
    **api_options: Any,
) -> AsyncIterator[RunningApi]:
    """Run an API in this event loop; `wrap` may put a faulty store around the real one, `api_options` go to `create_api`.

    `wrap_app` may put faults around the app; `place` is the database, by default a file in `directory`.
    """
    clock = clock or SystemClock()
    pki = Pki.ensure(directory / "pki", ["127.0.0.1"], clock.now(), "test")
    tokens = Tokens(directory / "tokens.json", clock, os.urandom)
    metrics, stopping = Metrics("controller"), asyncio.Event()
    async with SqlStore.open(place or directory / "store.db", registry, **(store_options or {})) as sql:
        store = wrap(sql)
        await ensure_namespace(sql, "default", clock=clock, ids=new_id)
        app = create_api(
            store=store,
            registry=registry,
            admission=admission_of(registry),
            identify=tokens.identify,
            clock=clock,
            ids=new_id,
            metrics=metrics,
            stopping=stopping,
            version="0.1.0",
            extra_routes=[*api_token_routes(tokens), *extra_routes],
            **api_options,
        )
        cert_file, key_file = pki.server_files("controller")
        async with serve_asgi(wrap_app(app), "127.0.0.1", port, tls=Tls(cert_file, key_file)) as listener:
            api = RunningApi(listener.url, store, tokens, pki, directory, metrics=metrics, stopping=stopping)
            try:
                yield api
            finally:
                stopping.set()
                await api.client.aclose()
