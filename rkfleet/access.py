"""API tokens on the wire: path and bodies of the HTTPS calls that make, list and revoke them.

Used by the controller's routes (`controller/api/api_tokens.py`) and the command line. Field names are camelCase in JSON; decoding is
tolerant of fields that a newer peer adds.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = ["TOKENS_PATH", "TokenList", "TokenRequest", "TokenResponse", "TokenRole", "TokenSummary"]

TOKENS_PATH: Final = "/access/v1alpha1/tokens"
"""POST makes one, GET lists them, DELETE of `<path>/<id or name>` revokes one; by an admin of all namespaces."""

TokenRole = Literal["admin", "operator", "viewer"]


class TokenRequest(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """POST `TOKENS_PATH`: for whom. No `namespaces` mean all; no `lifetime_seconds` mean until it is revoked."""

    name: str
    role: TokenRole
    namespaces: tuple[str, ...] = ()
    lifetime_seconds: int | None = None


class TokenSummary(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A token without its secret. Times are RFC 3339, or empty: it lives until it is revoked, unused since the controller started."""

    id: str
    name: str
    role: str
    namespaces: tuple[str, ...]
    created: str
    expires: str
    last_used: str


class TokenResponse(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Answer to a POST: the token, which nobody can tell again, and what the list says about it."""

    token: str
    summary: TokenSummary


class TokenList(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Answer to a GET."""

    items: tuple[TokenSummary, ...]
