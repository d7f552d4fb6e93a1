"""Who asks, and what they may do.

In: the Authorization header and what a request is about. Out: an identity, or Unauthenticated or PermissionDenied. There are two roles:
admin may do everything, gateway may read what routing needs. Tokens themselves are kept by `controller/trust/tokens.py`; it reaches this
module as an `Identify` function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from controller.api.paths import Target
from rkfleet.errors import PermissionDenied, Unauthenticated

__all__ = ["GATEWAY_READS", "Identify", "Identity", "authenticate", "authorize"]

ADMIN: Final = "admin"
GATEWAY: Final = "gateway"

GATEWAY_READS: Final = frozenset(("replicas.rkfleet.dev", "boards.rkfleet.dev", "modeldeployments.rkfleet.dev", "models.rkfleet.dev"))
"""What a gateway routes by; it may get, list and watch these and nothing else."""

_READS: Final = ("get", "list", "watch")


class Identity(Protocol):
    """Somebody known."""

    @property
    def name(self) -> str:
        """Name of the token, for messages."""
        ...

    @property
    def role(self) -> str:
        """`admin` or `gateway`."""
        ...


Identify = Callable[[str], Identity | None]
"""From a bearer token to its holder; None for a token that nobody holds. Must not block: it runs on every request."""


def authenticate(identify: Identify, authorization: str) -> Identity:
    """Return who sends this Authorization header.

    Raises:
        Unauthenticated: Nobody known.
    """
    scheme, _, token = authorization.partition(" ")
    identity = identify(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
    if identity is None:
        raise Unauthenticated("Unauthorized: send a known API token as `Authorization: Bearer <token>`")
    return identity


def authorize(identity: Identity, verb: str, target: Target) -> None:
    """Return if the identity may do this.

    Args:
        identity: Who asks.
        verb: get, list, watch, create, update, patch, delete or deletecollection.
        target: What it is about.

    Raises:
        PermissionDenied: It may not.
    """
    resource = target.kind.resource
    if identity.role == ADMIN:
        return
    if identity.role == GATEWAY and verb in _READS and resource.name in GATEWAY_READS and target.subresource in ("", "status"):
        return
    word = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
    place = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    about = f'{resource.name} "{target.name}" is forbidden' if target.name else f"{resource.name} is forbidden"
    raise PermissionDenied(f'{about}: User "{identity.name}" cannot {verb} resource "{word}" in API group "{resource.group}" {place}')
