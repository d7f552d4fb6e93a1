"""API tokens of people, services and gateways: who holds one, for how long, and where its role counts.

In: tokens as they are kept, bearers as they are presented. Out: identities. `tokens.py` keeps them and decides; this is what it holds in
memory. A lookup is one hash and one dictionary: it takes as long for a token that nearly exists as for one that does not.

When a token was last used is remembered here and nowhere else: writing it down would make every read a write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal, NamedTuple

import msgspec

from rkfleet.clock import Clock, format_time, parse_time

__all__ = ["ApiRole", "ApiToken", "ApiTokenView", "ApiTokens", "Identity", "sha256_of"]

ApiRole = Literal["admin", "operator", "viewer", "gateway"]

_SHOWN_ID_LENGTH: Final = 10  # Of the hash, for tokens of before they had ids; 40 bits of 160 tell a handful of tokens apart.


class Identity(NamedTuple):
    """Who calls the API.

    Attributes:
        namespaces: Where the role counts; empty for everywhere.
        id: Of the token.
    """

    name: str
    role: ApiRole
    namespaces: tuple[str, ...] = ()
    id: str = ""


class ApiToken(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A token as it is kept. Times are RFC 3339; a token without `expires` lives until it is revoked."""

    name: str
    role: ApiRole
    sha256: str
    id: str = ""
    namespaces: tuple[str, ...] = ()
    created: str = ""
    expires: str = ""

    @property
    def shown_id(self) -> str:
        """What people call it by."""
        return self.id or self.sha256[:_SHOWN_ID_LENGTH]


class ApiTokenView(NamedTuple):
    """What may be shown about a token: everything but its secret; `last_used` is empty when it was not since the controller started."""

    id: str
    name: str
    role: ApiRole
    namespaces: tuple[str, ...]
    created: str
    expires: str
    last_used: str


class _Held(NamedTuple):
    token: ApiToken
    identity: Identity
    expires: datetime | None


class ApiTokens:
    """All API tokens, by the hash of the bearer."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._held: Final[dict[str, _Held]] = {}
        self._last_used: Final[dict[str, datetime]] = {}

    def __iter__(self) -> Iterator[ApiToken]:
        """All of them, those that have expired too, in the order in which they were made."""
        return iter([held.token for held in tuple(self._held.values())])

    def identify(self, bearer: str) -> Identity | None:
        """Return whose token this is, or None: nobody's, or one that has expired."""
        held = self._held.get(sha256_of(bearer))
        if held is None:
            return None
        now = self._clock.now()
        if held.expires is not None and held.expires <= now:
            return None
        self._last_used[held.token.sha256] = now
        return held.identity

    def hold(self, token: ApiToken) -> None:
        """Take in a token; the one that its holder had in that role ends."""
        for other in self:
            if (other.name, other.role) == (token.name, token.role):
                self._drop(other)
        identity = Identity(token.name, token.role, token.namespaces, token.shown_id)
        self._held[token.sha256] = _Held(token, identity, parse_time(token.expires) if token.expires else None)

    def end(self, id_: str) -> None:
        """Forget the token with this id, if it is there."""
        for token in self:
            if token.shown_id == id_:
                self._drop(token)

    def named(self, name_or_id: str) -> list[ApiToken]:
        """Return the tokens with this id, or else those with this name."""
        return [one for one in self if one.shown_id == name_or_id] or [one for one in self if one.name == name_or_id]

    def expired_before(self, moment: datetime) -> list[ApiToken]:
        """Return the tokens that had expired by then."""
        return [held.token for held in tuple(self._held.values()) if held.expires is not None and held.expires <= moment]

    def views(self) -> tuple[ApiTokenView, ...]:
        """Return what may be shown about all, by name."""
        return tuple(self._view(token) for token in sorted(self, key=lambda one: (one.name, one.role)))

    def _view(self, token: ApiToken) -> ApiTokenView:
        used = self._last_used.get(token.sha256)
        return ApiTokenView(
            token.shown_id, token.name, token.role, token.namespaces, token.created, token.expires, format_time(used) if used else ""
        )

    def _drop(self, token: ApiToken) -> None:
        self._held.pop(token.sha256, None)
        self._last_used.pop(token.sha256, None)


def sha256_of(secret: str) -> str:
    """Return the hash under which a secret is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()
