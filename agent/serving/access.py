"""Who may ask this board, as whom, and from which web pages: one door for each listener, in front of `agent/serving/app.py`.

In: requests. Out: the same requests with their tenant, or a refusal in the caller's dialect. Wired by `agent/app.py`.

| listener | asks for | tenant |
|---|---|---|
| loopback | nothing | `local`, or that of the key that is sent along |
| clients of other machines, HTTPS | an API key | that of the key |
| gateways, mutual TLS | a certificate, before this | what the gateway says: it knows the client |

A client cannot choose its tenant: the header is read from gateways only. Web pages are refused unless their origin is allowed, also where
no key is asked for; otherwise every page that somebody on this machine opens could ask its models (`rkfleet/pages.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from agent.serving.app import TENANT, Serving
from agent.serving.call import LOCAL_TENANT, header
from agent.serving.connection import Headers, Message, Receive, Send
from rkfleet.api_keys import ApiKeys, Attempts, tenant_of
from rkfleet.clock import Clock
from rkfleet.errors import FleetError, PermissionDenied, ResourceExhausted, Unauthenticated
from rkfleet.ops import ASGIApp
from rkfleet.pages import Pages

__all__ = ["GatewayDoor", "KeyDoor", "LocalDoor", "LocalHosts"]

PREFLIGHT_SECONDS: Final = b"600"  # How long a browser may remember what it may ask.
GATEWAY_TENANT: Final = "gateway"  # Of gateways that ask nobody for a key.
REALM: Final = "board"

_TENANT: Final = re.compile(rb"[0-9a-f]{32}")
_EXPOSED: Final = b"x-request-id, x-rkfleet-board, x-rkfleet-replica, x-rkfleet-variant, x-rkfleet-ignored, retry-after"


class _Pages:
    """Web pages that may ask: CORS for the origins that the operator named, a refusal for all others."""

    def __init__(self, serving: Serving, origins: Collection[str]) -> None:
        self._serving: Final = serving
        self._pages: Final = Pages(origins)

    async def refuse(self, scope: Message, receive: Receive, send: Send, error: FleetError) -> None:
        await self._serving.client(scope, receive, send).fail(error)

    async def let_in(self, scope: Message, receive: Receive, send: Send, tenant: str) -> None:
        await self._serving({**scope, TENANT: tenant}, receive, send)

    def answering(self, scope: Message, send: Send) -> Send:
        """Return `send` with what the browser must be told about this origin."""
        origin = header(scope["headers"], b"origin")
        if not origin:
            return send
        told: Headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin"), (b"access-control-expose-headers", _EXPOSED)]

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *told]}
            await send(message)

        return tell

    async def preflight(self, scope: Message, receive: Receive, send: Send) -> bool:
        """Answer a browser's question before a request, or a page that may not ask; return whether that was all.

        Requests without an origin come from programs.
        """
        origin = header(scope["headers"], b"origin")
        if not self._pages.allows_origin(origin):
            shown = origin[:128].decode("latin-1")
            error = PermissionDenied(
                f"pages of {shown!r} may not ask this board; its operator can allow it with --cors-origin {shown}",
                code="origin_not_allowed",
            )
            await self.refuse(scope, receive, send, error)
            return True
        wanted = header(scope["headers"], b"access-control-request-headers")
        if not origin or scope["method"] != "OPTIONS":
            return False
        allowed = [
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", wanted or b"authorization, content-type"),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]
        await self.answering(scope, send)({"type": "http.response.start", "status": 204, "headers": allowed})
        await send({"type": "http.response.body", "body": b""})
        return True


class LocalHosts:
    """What stands in front of everything on loopback: names that somebody else pointed to this machine are no way in."""

    def __init__(self, app: ASGIApp, serving: Serving, *, origins: Collection[str] = ()) -> None:
        """Take the application behind it, and the origins whose names are let in as well."""
        self._app: Final = app
        self._serving: Final = serving
        self._pages: Final = Pages(origins)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in (ASGI)."""
        host = header(scope["headers"], b"host")
        if self._pages.allows_host(host):
            await self._app(scope, receive, send)
            return
        shown = host[:128].decode("latin-1")
        error = PermissionDenied(
            f"host {shown!r} is not this machine's name; ask for localhost or its address, or allow the name with --cors-origin http://{shown}",
            code="host_not_allowed",
        )
        await self._serving.client(scope, receive, send).fail(error)


class LocalDoor:
    """The listener on loopback: programs of this machine."""

    def __init__(self, serving: Serving, *, origins: Collection[str] = (), keys: ApiKeys = ApiKeys()) -> None:
        """Take the origins of pages that may ask, and keys whose owners are told apart if they send them."""
        self._pages: Final = _Pages(serving, origins)
        self._keys: Final = keys

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in (ASGI)."""
        if await self._pages.preflight(scope, receive, send):
            return
        name = self._keys.name_of(header(scope["headers"], b"authorization"))
        tenant = tenant_of(REALM, name) if name is not None else LOCAL_TENANT
        await self._pages.let_in(scope, receive, self._pages.answering(scope, send), tenant)


class KeyDoor:
    """The listener for clients of other machines: each sends a key."""

    def __init__(self, serving: Serving, *, keys: ApiKeys, clock: Clock, origins: Collection[str] = ()) -> None:
        """Take the keys that are let in, and the origins of pages that may ask with one."""
        assert keys, "a door without keys would be open"
        self._pages: Final = _Pages(serving, origins)
        self._keys: Final = keys
        self._attempts: Final = Attempts(clock)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in that has a key (ASGI)."""
        if await self._pages.preflight(scope, receive, send):
            return
        send = self._pages.answering(scope, send)
        address = str((scope.get("client") or ("",))[0])
        if wait := self._attempts.wait_seconds(address):
            error = ResourceExhausted(
                f"too many wrong API keys came from {address}; it is listened to again in {wait} s", wait, code="too_many_attempts"
            )
            await self._pages.refuse(scope, receive, send, error)
            return
        name = self._keys.name_of(header(scope["headers"], b"authorization"))
        if name is None:
            self._attempts.failed(address)
            message = "the API key is missing or not one of this board's; send Authorization: Bearer KEY"
            await self._pages.refuse(scope, receive, send, Unauthenticated(message, code="invalid_api_key"))
            return
        await self._pages.let_in(scope, receive, send, tenant_of(REALM, name))


class GatewayDoor:
    """The listener for gateways: their certificate has let them in."""

    def __init__(self, serving: Serving) -> None:
        self._serving: Final = serving

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a gateway's request in as its client's (ASGI)."""
        given = header(scope["headers"], b"x-rkfleet-tenant")
        tenant = given.decode() if _TENANT.fullmatch(given) else GATEWAY_TENANT
        await self._serving({**scope, TENANT: tenant}, receive, send)
