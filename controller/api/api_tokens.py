"""API tokens over HTTPS: an admin makes, lists and revokes them.

In: requests of an admin of all namespaces. Out: a token, once, and what may be shown of all. `rkfleet token` calls it. It is apart from the
resource API because tokens are no objects: nobody declares, watches or patches secrets that are kept as hashes.

    POST   /access/v1alpha1/tokens
    GET    /access/v1alpha1/tokens
    DELETE /access/v1alpha1/tokens/ID-OR-NAME
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api import auth
from controller.api.enrollment import json_answer, read_body
from controller.api.scope import note
from controller.trust.tokens import ApiTokenView, Tokens
from rkfleet.access import TOKENS_PATH, TokenList, TokenRequest, TokenResponse, TokenSummary
from rkfleet.errors import Cause, Invalid
from rkfleet.meta import check_name

__all__ = ["api_token_routes"]

NAME_LENGTH_MAX: Final = 100  # It stands in every line of the audit log; an address of mail has room.
NAMESPACES_MAX: Final = 64  # Of one token; each request compares with all of them.
NAMESPACE_LENGTH_MAX: Final = 63  # As Kubernetes.
_NAME: Final = re.compile(rf"[A-Za-z0-9](?:[A-Za-z0-9._@-]{{0,{NAME_LENGTH_MAX - 2}}}[A-Za-z0-9])?")


def api_token_routes(tokens: Tokens) -> list[Route]:
    """Return the routes for the API application."""

    async def create(request: Request) -> Response:
        """Answer with a new token.

        Raises:
            PermissionDenied: The caller is no admin of all namespaces.
            Invalid, AlreadyExists, ResourceExhausted, Unavailable: As the tokens say.
        """
        _require_admin(tokens, request)
        asked = _checked(await read_body(request, TokenRequest))
        token, view = await asyncio.to_thread(tokens.create_api_token, asked.name, asked.role, asked.namespaces, asked.lifetime_seconds)
        _note(request, view)
        return json_answer(TokenResponse(token=token, summary=_summary(view)), 201)

    async def show(request: Request) -> Response:
        _require_admin(tokens, request)
        return json_answer(TokenList(items=tuple(_summary(view) for view in tokens.api_tokens())))

    async def revoke(request: Request) -> Response:
        """Answer with what the token was.

        Raises:
            PermissionDenied: The caller is no admin of all namespaces.
            NotFound, Conflict, Unavailable: As the tokens say.
        """
        _require_admin(tokens, request)
        view = await asyncio.to_thread(tokens.revoke_api_token, request.path_params["name"])
        _note(request, view)
        return json_answer(_summary(view))

    return [
        Route(TOKENS_PATH, create, methods=["POST"]),
        Route(TOKENS_PATH, show, methods=["GET"]),
        Route(f"{TOKENS_PATH}/{{name}}", revoke, methods=["DELETE"]),
    ]


def _require_admin(tokens: Tokens, request: Request) -> None:
    auth.authorize_path(auth.require_caller(tokens.identify, request), request.method, request.url.path)


def _checked(asked: TokenRequest) -> TokenRequest:
    causes = []
    if not _NAME.fullmatch(asked.name):
        problem = f"{asked.name[:NAME_LENGTH_MAX]!r} must be 1 to {NAME_LENGTH_MAX} letters, digits or -_.@, the first and last no sign"
        causes.append(Cause("name", problem))
    if len(asked.namespaces) > NAMESPACES_MAX:
        causes.append(Cause("namespaces", f"{len(asked.namespaces)} are named, at most {NAMESPACES_MAX} are allowed"))
    for index, namespace in enumerate(asked.namespaces[:NAMESPACES_MAX]):
        if problem := check_name(namespace, length_max=NAMESPACE_LENGTH_MAX):
            causes.append(Cause(f"namespaces[{index}]", problem))
    if causes:
        raise Invalid(f"the token cannot be made: {causes[0].field}: {causes[0].message}", tuple(causes))
    return asked


def _note(request: Request, view: ApiTokenView) -> None:
    where = ",".join(view.namespaces) or "all namespaces"
    note(request.scope, "rkfleet.dev/token", f"{view.id} {view.name} {view.role} in {where}")


def _summary(view: ApiTokenView) -> TokenSummary:
    return TokenSummary(
        id=view.id,
        name=view.name,
        role=view.role,
        namespaces=view.namespaces,
        created=view.created,
        expires=view.expires,
        last_used=view.last_used,
    )
