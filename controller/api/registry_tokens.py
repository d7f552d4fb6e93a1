"""Two routes of the API about the registry: where it is, and tokens for it.

In: an API token, as Bearer or as the password of Basic, and the scope that the registry asked for. Out: a registry token for the part of
the scope that the caller's role allows. `rkfleet model push` and OCI clients (oras, docker) call it; the registry never does. It
stands apart from the Kubernetes part of the API because its format is the one of Docker Registry v2 tokens.

Source: distribution `docs/content/spec/auth/token.md`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api.auth import OPERATOR, Identify, Identity, is_admin
from controller.api.scope import GUESSED, IDENTITY
from controller.trust.pull_tokens import SERVICE, TOKEN_SECONDS, Access, Claims, TokenSigner, parse_scope
from rkfleet.clock import Clock, format_time
from rkfleet.errors import FleetError, PermissionDenied, Unauthenticated

__all__ = ["INFO_PATH", "TOKEN_PATH", "registry_routes"]

TOKEN_PATH: Final = "/registry/v1alpha1/token"  # noqa: S105 (a path)
INFO_PATH: Final = "/registry/v1alpha1/info"
SCOPES_MAX: Final = 16  # A mount asks for two; more is a mistake.


def registry_routes(identify: Identify, signer: TokenSigner, registry_url: str, clock: Clock) -> list[Route]:
    """Return the routes `GET /registry/v1alpha1/token` and `GET /registry/v1alpha1/info`.

    Args:
        identify: From an API token to its holder.
        signer: Signs registry tokens.
        registry_url: The registry as people and boards reach it.
        clock: For `issued_at`.
    """

    async def token(request: Request) -> Response:
        identity = _identify(identify, request)
        asked = request.query_params.getlist("scope")
        if len(asked) > SCOPES_MAX:
            raise PermissionDenied(f"{len(asked)} scopes are asked for, at most {SCOPES_MAX} are granted at once")
        if (service := request.query_params.get("service", SERVICE)) != SERVICE:
            raise PermissionDenied(f"tokens for service {service[:80]!r} are not given here, only for {SERVICE}")
        access = tuple(one for scope in asked for one in parse_scope(scope) if _may(identity, one))
        signed = signer.sign(Claims(identity.name, access))
        return _json({
            "token": signed,
            "access_token": signed,
            "expires_in": TOKEN_SECONDS,
            "issued_at": format_time(clock.now()),
        })  # fmt: skip

    async def info(request: Request) -> Response:
        _identify(identify, request)
        return _json({"registryUrl": registry_url, "service": SERVICE})

    return [Route(TOKEN_PATH, _guarded(token), methods=["GET"]), Route(INFO_PATH, _guarded(info), methods=["GET"])]


def _may(identity: Identity, access: Access) -> bool:
    """Admins and operators of all namespaces push and pull; gateways have no business with bytes, boards get theirs over the session."""
    return (is_admin(identity) or (identity.role == OPERATOR and not identity.namespaces)) and bool(access.actions)


def _identify(identify: Identify, request: Request) -> Identity:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    bearer = value.strip()
    if scheme.lower() == "basic":
        try:
            bearer = base64.b64decode(bearer, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Unauthenticated("the Basic credentials cannot be read") from error
    elif scheme.lower() != "bearer":
        bearer = ""
    identity = identify(bearer) if bearer else None
    if identity is None:
        message = "log in with an API token: as bearer token, or as password with any user name"
        raise Unauthenticated(message, presented=bool(bearer))
    request.scope[IDENTITY] = identity
    return identity


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer errors in the format that registry clients read."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except FleetError as error:
            if isinstance(error, Unauthenticated) and GUESSED in request.scope:
                request.scope[GUESSED](error)
            headers = {"WWW-Authenticate": 'Basic realm="rkfleet"'} if isinstance(error, Unauthenticated) else {}
            code = "UNAUTHORIZED" if isinstance(error, Unauthenticated) else "DENIED"
            return _json(
                {
                    "errors": [{"code": code, "message": error.message, "detail": None}],
                    # And as a Status, which our own API client reads.
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": error.message, "reason": error.http_reason,
                    "code": error.http_status,
                },
                error.http_status,
                headers,
            )  # fmt: skip

    return guarded


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
