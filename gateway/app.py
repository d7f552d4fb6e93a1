"""The gateway program: the surface for OpenAI's and Ollama's clients, and the one place that wires its parts.

In: a `Config`. Out: a process that serves `/v1/*` and `/api/*` to clients, keeps its routing table current, and tells its own health and
metrics on a listener of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from gateway import limits
from gateway.config import Config
from gateway.endpoints import Endpoints
from gateway.proxy import Failure, Proxy, failure_body, until_disconnect
from gateway.routing import Served, Table, Target
from gateway.snapshot import Snapshot
from rkfleet import __version__
from rkfleet import metric_names as names
from rkfleet.api_keys import ApiKeys, Attempts, tenant_of
from rkfleet.client import ApiClient, Cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.identity import Identity
from rkfleet.metrics import Metrics
from rkfleet.ops import Receive, Send, Tls, ops_app, serve_asgi
from rkfleet.pages import Pages
from rkfleet.renewal import Renewal, Renewing
from rkfleet.request_ids import request_id as this_id

__all__ = ["GatewayApp", "TableSource", "board_context", "run"]

_FORWARDED: Final = frozenset(
    {
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/logits",
        "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show",
    }
)  # fmt: skip
REALM: Final = "gateway"
PAGES: Final = Pages()  # None: where no key is asked for, only programs of this machine are served.


class _Asked(msgspec.Struct):
    """What the gateway reads of a request; everything else is the board's business."""

    model: str = ""
    name: str = ""  # as older clients of Ollama call it


class TableSource(Protocol):
    """Where the current routing table is."""

    table: Table


class GatewayApp:
    """The ASGI application that clients talk to."""

    def __init__(self, endpoints: TableSource, proxy: Proxy, keys: ApiKeys, clock: Clock, metrics: Metrics) -> None:
        self._endpoints: Final = endpoints
        self._proxy: Final = proxy
        self._keys: Final = keys
        self._attempts: Final = Attempts(clock)
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._open = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = self._clock.monotonic()
        model, status = "", 0
        request_id = this_id(scope["headers"])
        own = [(b"x-request-id", request_id.encode())]
        self._open += 1
        self._metrics.gauge(names.GATEWAY_OPEN_REQUESTS).set(self._open)
        try:
            tenant = self._admit(scope)
            method, path = scope["method"], scope["path"]
            if method in {"GET", "HEAD"} and path == "/":
                status = await _send(send, 200, b"Ollama is running", own, content_type=b"text/plain; charset=utf-8")
            elif method in {"GET", "HEAD"}:
                status = await _send(send, 200, self._models(path), own)
            elif method == "POST" and path in _FORWARDED:
                body = await _read_body(receive)
                served, adapter = self._served(body)
                model = served.name
                unasked = [one for one in scope["headers"] if one[0] not in {b"x-request-id", b"x-rkfleet-tenant"}]
                headers = [*unasked, *own, (b"x-rkfleet-tenant", tenant)]
                status = await self._forward(served, path, headers, body, adapter=adapter, receive=receive, send=send)
            else:
                raise Failure(404, "unknown_url", f"{method} {path} is not served here; see GET /v1/models and POST /v1/chat/completions")
        except Failure as failure:
            headers = [(b"retry-after", str(failure.retry_after_seconds).encode())] if failure.retry_after_seconds else []
            status = await _send(send, failure.status, failure_body(failure, scope["path"], request_id), own + headers)
        finally:
            self._open -= 1
            self._metrics.gauge(names.GATEWAY_OPEN_REQUESTS).set(self._open)
            self._metrics.counter(names.GATEWAY_REQUESTS, model_name=model, code=str(status or 499)).inc()
            self._metrics.histogram(names.GATEWAY_REQUEST_SECONDS, model_name=model).observe(self._clock.monotonic() - started)

    def _admit(self, scope: MutableMapping[str, Any]) -> bytes:
        """Let a request in and return its tenant, as boards are told it.

        Raises:
            Failure: The gateway is full, the key is not one of its own, too many wrong ones came from this address, or without any key it
                is a web page that asks.
        """
        if self._open > limits.OPEN_REQUESTS_MAX:
            message = f"the gateway has {limits.OPEN_REQUESTS_MAX} open requests, its limit; ask again in a moment"
            raise Failure(429, "gateway_full", message, type="server_error", retry_after_seconds=limits.RETRY_AFTER_SECONDS)
        if not self._keys:
            _refuse_pages(scope["headers"])
            return tenant_of(REALM, "").encode()
        address = str((scope.get("client") or ("",))[0])
        if wait := self._attempts.wait_seconds(address):
            message = f"too many wrong API keys came from {address}; it is listened to again in {wait} s"
            raise Failure(429, "too_many_attempts", message, type="rate_limit_error", retry_after_seconds=wait)
        name = self._keys.name_of(next((value for name, value in scope["headers"] if name == b"authorization"), b""))
        if name is None:
            self._attempts.failed(address)
            raise Failure(401, "invalid_api_key", "the API key is missing or not one of this gateway's; send Authorization: Bearer KEY")
        return tenant_of(REALM, name).encode()

    def _models(self, path: str) -> bytes:
        models = self._endpoints.table.models
        if path == "/api/version":
            return msgspec.json.encode({"version": f"{__version__}-rkfleet"})
        if path == "/api/tags":
            return msgspec.json.encode({"models": [_tag(served) for served in models.values()]})
        if path == "/v1/models":
            return msgspec.json.encode({"object": "list", "data": [_card(served) for served in models.values()]})
        name = path.removeprefix("/v1/models/")
        if name != path and name in models:
            return msgspec.json.encode(_card(models[name]))
        if name != path:
            raise _unknown_model(name, models)
        raise Failure(404, "unknown_url", f"GET {path} is not served here; see GET /v1/models and POST /v1/chat/completions")

    def _served(self, body: bytes) -> tuple[Served, bool]:
        """Return what is asked for, and whether it is an adapter of it.

        Raises:
            Failure: Nothing that is served, or nothing that is ready.
        """
        try:
            asked = msgspec.json.decode(body, type=_Asked)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Failure(400, "invalid_json", f"the request body is no request for a model: {error}") from error
        name = asked.model or asked.name
        if not name:
            raise Failure(400, "missing_required_parameter", "model: is missing; name one of GET /v1/models")
        table = self._endpoints.table
        served = table.find(name)
        if served is None:
            raise _unknown_model(name, table.models)
        if not served.targets:
            raise Failure(
                503, "no_ready_replica", f"model {name!r} has no ready replica: {served.why}",
                type="server_error", retry_after_seconds=limits.RETRY_AFTER_SECONDS,
            )  # fmt: skip
        return served, name.removesuffix(":latest") != served.name

    async def _forward(
        self, served: Served, path: str, headers: list[tuple[bytes, bytes]], body: bytes, *, adapter: bool, receive: Receive, send: Send
    ) -> int:
        def ready() -> tuple[Target, ...]:
            return self._endpoints.table.models.get(served.name, served).targets

        answering = self._proxy.forward(served, path, headers, body, send, ready=ready, adapter=adapter)
        status = await until_disconnect(answering, receive)
        return 499 if status is None else status  # nginx's number for a client that left


def _refuse_pages(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse what a browser sends for a page that somebody on this machine opened.

    Raises:
        Failure: It does.
    """
    sent = dict(headers)
    if not PAGES.allows_origin(origin := sent.get(b"origin", b"")):
        shown = origin[:128].decode("latin-1")
        raise Failure(403, "origin_not_allowed", f"pages of {shown!r} may not ask this gateway, which asks nobody for a key")
    if not PAGES.allows_host(host := sent.get(b"host", b"")):
        shown = host[:128].decode("latin-1")
        raise Failure(403, "host_not_allowed", f"host {shown!r} is not this machine's name; ask for localhost or its address")


def _card(served: Served) -> dict[str, Any]:
    """Return a model's entry; it says so when a simulated board may answer, and has no such field otherwise."""
    card = {"id": served.name, "object": "model", "created": served.created, "owned_by": "rkfleet"}
    return {**card, "simulated": True} if any(target.simulated for target in served.targets) else card


def _tag(served: Served) -> dict[str, Any]:
    """Return a model's entry for Ollama's clients; what its files are, the boards know."""
    name = f"{served.name}:latest"
    return {"name": name, "model": name, "modified_at": "0001-01-01T00:00:00Z", "size": 0, "digest": "", "details": {}}


def _unknown_model(name: str, models: dict[str, Served]) -> Failure:
    known = ", ".join(sorted(models)[:10]) or "none"
    return Failure(404, "model_not_found", f"model {name[:128]!r} is not served here; served are: {known}")


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Failure(400, "client_left", "the client left before its request was complete")
        body += message.get("body", b"")
        if len(body) > limits.BODY_BYTES_MAX:
            raise Failure(413, "request_too_large", f"the request body has more than {limits.BODY_BYTES_MAX} bytes")
        if not message.get("more_body"):
            return bytes(body)


async def _send(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]], *, content_type: bytes = b"application/json"
) -> int:
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + headers})
    await send({"type": "http.response.body", "body": body})
    return status


def board_context(cert_file: Path | None, key_file: Path | None, ca_file: Path) -> ssl.SSLContext:
    """Return the context that boards know a gateway by, and that trusts servers of this fleet only."""
    context = ssl.create_default_context(cafile=str(ca_file))
    if cert_file and key_file:
        context.load_cert_chain(cert_file, key_file)
    return context


async def run(config: Config, identity: Identity) -> None:
    """Serve until cancelled."""
    clock = SystemClock()
    metrics = Metrics("gateway")
    cluster = Cluster(config.controller, identity.ca_file.read_text(), identity.api_token)
    tls = Tls(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(ApiClient(cluster, clock, user_agent="rkfleet-gateway"))
        endpoints = Endpoints(client, identity.fleet_id, Snapshot(config.data_dir / "routing.json"), clock, metrics)
        boards = board_context(identity.cert_file, identity.key_file, identity.ca_file)
        renewing = _renewing(identity, boards, clock, metrics)
        proxy = Proxy(boards, clock, metrics)
        stack.callback(proxy.close)
        app = GatewayApp(endpoints, proxy, config.api_keys, clock, metrics)
        await stack.enter_async_context(serve_asgi(ops_app(endpoints.not_ready, metrics.text), config.ops_host, config.ops_port))
        await stack.enter_async_context(serve_asgi(app, config.host, config.port, tls=tls))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(endpoints.run())
            tasks.create_task(renewing.run())


def _renewing(identity: Identity, boards: ssl.SSLContext, clock: Clock, metrics: Metrics) -> Renewing:
    """Return what keeps the gateway's certificate new: connections from then on show the new one, open ones go on."""

    def show(found: Identity) -> None:
        if found.expires_timestamp is not None:
            metrics.gauge(names.CERTIFICATE_EXPIRY, certificate="gateway").set(found.expires_timestamp)

    def renewed(found: Identity) -> None:
        boards.load_cert_chain(found.cert_file, found.key_file)
        show(found)

    show(identity)
    jitter = random.Random()  # noqa: S311 (spreads retries)
    return Renewing(identity, Renewal(role="gateway"), clock=clock, jitter=jitter, now=clock.now, on_renewed=renewed)
