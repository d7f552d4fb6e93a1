"""Who asks, and whether they may, in the words of Kubernetes.

In: the Authorization header and what a request is about. Out: an identity, or Unauthenticated or PermissionDenied. What a role may do is
`roles.py`. Tokens themselves are kept by `controller/trust/tokens.py`; it reaches this module as an `Identify` function.

There is no way in with a certificate: this port asks for none, and boards, which have one, say what they have to say on their session.

Source: Kubernetes `staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go` for the sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from starlette.requests import Request

from controller.api.paths import Target
from controller.api.roles import ADMIN, GATEWAY, OPERATOR, VIEWER, Attributes, Identity, allows, allows_path
from controller.api.scope import IDENTITY, LAPSES
from controller.trust.binding import KEY_ANNOTATION, MACHINE_ANNOTATION
from rkfleet.clock import Clock
from rkfleet.errors import PermissionDenied, Unauthenticated
from rkfleet.kinds.board import Board

__all__ = [
    "ADMIN", "GATEWAY", "OPERATOR", "VIEWER", "Identify", "Identity", "attributes_of", "authenticate", "authorize", "authorize_path",
    "bearer_of", "end_with_token", "is_admin", "judge_of", "require", "require_caller",
]  # fmt: skip

Json = dict[str, Any]

LAPSE_CHECK_SECONDS: Final = 2.0  # How long a stream may outlive its token; one look into a dictionary each time.

_IMPERSONATE: Final = "impersonate-"  # Headers of `kubectl --as` begin so.

Identify = Callable[[str], Identity | None]
"""From a bearer token to its holder; None for a token that nobody holds. Must not block: it runs on every request."""


def bearer_of(authorization: str) -> str:
    """Return the token of an Authorization header; empty if it has none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticate(identify: Identify, authorization: str) -> Identity:
    """Return who sends this Authorization header.

    Raises:
        Unauthenticated: Nobody known; `presented` of its details is False if nothing was shown at all.
    """
    bearer = bearer_of(authorization)
    identity = identify(bearer) if bearer else None
    if identity is None:
        message = "Unauthorized: send a known API token as `Authorization: Bearer <token>`"
        raise Unauthenticated(message, presented=bool(authorization.strip()))
    return identity


def require_caller(identify: Identify, request: Request) -> Identity:
    """Return who sends this request, and leave it in its scope.

    Raises:
        Unauthenticated: Nobody known.
        PermissionDenied: It is to be done in the name of somebody else (`kubectl --as`), which is not served; done in the caller's own
            name, it would be more than was asked for.
    """
    identity = authenticate(identify, request.headers.get("authorization", ""))
    request.scope[IDENTITY] = identity
    for header, whom in request.headers.items():
        if header.startswith(_IMPERSONATE):
            what = "groups" if header == f"{_IMPERSONATE}group" else "users"
            raise PermissionDenied(
                f'{what} "{whom}" is forbidden: User "{identity.name}" cannot impersonate resource "{what}" in API group "" at the cluster'
                " scope: nobody acts for others here; use a token of theirs"
            )
    return identity


def end_with_token(identify: Identify, request: Request, clock: Clock) -> None:
    """Leave in the scope of a request what ends a stream when the caller's token is revoked or expires."""
    bearer = bearer_of(request.headers.get("authorization", ""))

    async def lapses() -> None:
        while identify(bearer) is not None:
            await clock.sleep(LAPSE_CHECK_SECONDS)

    ending: Callable[[], Coroutine[Any, Any, None]] = lapses
    request.scope[LAPSES] = ending


def is_admin(identity: Identity) -> bool:
    """Return whether the identity may do everything, everywhere."""
    return identity.role == ADMIN and not identity.namespaces


def attributes_of(verb: str, target: Target) -> Attributes:
    """Return what a verb on a target asks for. A Namespace lies in itself, as in Kubernetes."""
    resource = target.kind.resource
    namespace = target.name if resource.name == "namespaces" else target.namespace
    return Attributes(verb, resource.group, resource.plural, target.subresource, namespace, target.name)


def authorize(identity: Identity, verb: str, target: Target) -> None:
    """Return if the identity may do this.

    Args:
        identity: Who asks.
        verb: get, list, watch, create, update, patch, delete or deletecollection.
        target: What it is about.

    Raises:
        PermissionDenied: It may not.
    """
    require(identity, attributes_of(verb, target))


def require(identity: Identity, asked: Attributes) -> None:
    """Return if the identity may do this.

    Raises:
        PermissionDenied: It may not.
    """
    if allows(identity, asked):
        return
    place = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    qualified = f"{asked.resource}.{asked.group}" if asked.group else asked.resource
    about = f'{qualified} "{asked.name}" is forbidden' if asked.name else f"{qualified} is forbidden"
    what = f'resource "{asked.path}" in API group "{asked.group}"'
    raise PermissionDenied(f'{about}: User "{identity.name}" cannot {asked.verb} {what} {place}')


def judge_of(identity: Identity, target: Target) -> Callable[[Json | None, Json], None] | None:
    """Return what judges a write by its outcome; None for who may do everything.

    An apply that makes an object needs the verb create as well. What a Board is bound to decides who gets its next certificate, so that is
    an admin's business only.
    """
    if is_admin(identity):
        return None

    def judge(stored: Json | None, wanted: Json) -> None:
        if stored is None:
            authorize(identity, "create", target)
        elif target.kind is Board:
            for annotation in (KEY_ANNOTATION, MACHINE_ANNOTATION):
                if _annotation(stored, annotation) != _annotation(wanted, annotation):
                    raise PermissionDenied(
                        f'{Board.resource.name} "{target.name}" is forbidden: User "{identity.name}" cannot change the annotation'
                        f" {annotation}, which binds the board to its key or machine; ask an admin"
                    )

    return judge


def _annotation(obj: Json, annotation: str) -> object:
    return (obj["metadata"].get("annotations") or {}).get(annotation)


def authorize_path(identity: Identity, method: str, path: str) -> None:
    """Return if the identity may use a path that is no resource.

    Raises:
        PermissionDenied: It may not.
    """
    if not allows_path(identity, method.lower(), path):
        raise PermissionDenied(f'forbidden: User "{identity.name}" cannot {method.lower()} path "{path}"')
