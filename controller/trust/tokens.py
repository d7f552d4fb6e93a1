"""API tokens and join tokens, hashed at rest in the files of `token_file.py`.

In: what callers present. Out: who they are, or a refusal with its reason. API requests ask `identify`; the enrolment routes `redeem` join
tokens; the session hub `settle`s them. It stands apart from the store because tokens are secrets of this installation, not declared state,
and because a restored database must not bring used tokens back to life.

A join token `rkj1.<id>.<secret>` lives an hour. Its first use binds it to the key of that certificate request and to one name. The same key
may repeat until the board's first session, so that a kill between answer and disk does not lock the board out; any other key is refused.

Methods block for a file sync when they change something and are safe to call from any thread.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from controller.trust.files import make_private_directory
from controller.trust.token_file import LINES_MAX, TokenFile
from rkfleet.clock import Clock, format_time, parse_time
from rkfleet.disk import Disk, SystemDisk
from rkfleet.enrolment import JOIN_SECONDS_DEFAULT, Role
from rkfleet.errors import FailedPrecondition, Invalid, PermissionDenied, ResourceExhausted, Unauthenticated

__all__ = ["TOKEN_FILES", "ApiRole", "Identity", "JoinTokenView", "Tokens", "without_join_tokens"]

TOKEN_FILES: Final = ("tokens.json", "tokens.json.log")

ApiRole = Literal["admin", "gateway"]

JOIN_SECONDS_MAX: Final = 7 * 86400  # A token that outlives the week it was made for is forgotten about, not used.
JOIN_TOKENS_MAX: Final = 10_000  # Twice the boards of the largest fleet; each is written with every change of the file.
REMEMBERED: Final = timedelta(days=1)  # How long an expired join token is still named in its refusal.
_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 20  # 160 bits: guessing is hopeless, so a plain hash keeps it safe at rest.


class Identity(NamedTuple):
    """Who calls the API."""

    name: str
    role: ApiRole


class JoinTokenView(NamedTuple):
    """What may be shown about a join token: everything but its secret."""

    id: str
    role: Role
    expires: str
    used_by: str


class _ApiToken(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    role: ApiRole
    sha256: str


class _JoinToken(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    id: str
    role: Role
    sha256: str
    expires: str
    name: str = ""
    key_sha256: str = ""
    spent: bool = False


class _File(msgspec.Struct, frozen=True, rename="camel"):
    api: tuple[_ApiToken, ...] = ()
    join: tuple[_JoinToken, ...] = ()


class _Change(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One token as it is now; a new API token ends the one that its holder had."""

    api: _ApiToken | None = None
    join: _JoinToken | None = None


class Tokens:
    """All tokens of one installation, in memory and in their files."""

    def __init__(
        self, path: Path, clock: Clock, random_bytes: Callable[[int], bytes], disk: Disk = SystemDisk(), log_lines_max: int = LINES_MAX
    ) -> None:
        """Load the file, which need not exist.

        Args:
            path: `tokens.json`; its log is beside it.
            clock: Judges the lifetime of join tokens.
            random_bytes: Source of secrets, `os.urandom` in the running program.
            disk: Disk that the files are on.
            log_lines_max: Changes after which all tokens are written anew.

        Raises:
            FailedPrecondition: A file is there and cannot be read.
        """
        self._clock: Final = clock
        self._random_bytes: Final = random_bytes
        self._lock: Final = threading.Lock()
        make_private_directory(path.parent)
        self._file: Final = TokenFile(path, _File, _Change, disk, log_lines_max)
        self._api: Final[dict[str, _ApiToken]] = {}
        self._join: Final[dict[str, _JoinToken]] = {}
        self._by_expiry: Final[list[tuple[str, str]]] = []  # A heap; times of this format sort as text.
        self._bound: Final[dict[tuple[str, str], set[str]]] = {}  # Ids of tokens that are bound and not used up, by name and key.
        whole, changes = self._file.load()
        for change in (*(_Change(api=one) for one in whole.api), *(_Change(join=one) for one in whole.join), *changes):
            self._hold(change)

    def identify(self, bearer: str) -> Identity | None:
        """Return whose API token this is, or None."""
        found = self._api.get(_sha256(bearer))
        return Identity(found.name, found.role) if found else None

    def issue_api_token(self, name: str, role: ApiRole) -> str:
        """Return a new API token of `name`; the one it had before ends.

        Raises:
            Unavailable: The file cannot be written; nothing changed.
        """
        bearer = f"rkt1.{self._random_bytes(_SECRET_BYTES).hex()}"
        issued = _ApiToken(name=name, role=role, sha256=_sha256(bearer))
        with self._lock:
            self._save(_Change(api=issued))
        return bearer

    def create_join_token(self, role: Role, lifetime_seconds: int = JOIN_SECONDS_DEFAULT) -> tuple[str, str]:
        """Return a new join token and when it expires (RFC 3339).

        Raises:
            Invalid: The lifetime is outside 1..JOIN_SECONDS_MAX.
            ResourceExhausted: JOIN_TOKENS_MAX tokens are open.
            Unavailable: The file cannot be written; nothing changed.
        """
        if not 1 <= lifetime_seconds <= JOIN_SECONDS_MAX:
            raise Invalid(f"lifetime of a join token is {lifetime_seconds} s, must be 1..{JOIN_SECONDS_MAX}")
        id_, secret = self._random_bytes(_ID_BYTES).hex(), self._random_bytes(_SECRET_BYTES).hex()
        expires = format_time(self._clock.now() + timedelta(seconds=lifetime_seconds))
        with self._lock:
            self._forget_expired()
            if len(self._join) >= JOIN_TOKENS_MAX:
                raise ResourceExhausted(
                    f"{len(self._join)} join tokens are open, at most {JOIN_TOKENS_MAX} are allowed; some expire within the hour"
                )
            self._save(_Change(join=_JoinToken(id=id_, role=role, sha256=_sha256(secret), expires=expires)))
        return f"rkj1.{id_}.{secret}", expires

    def join_tokens(self) -> tuple[JoinTokenView, ...]:
        """Return the join tokens that can still be used, oldest first to expire."""
        now = self._clock.now()
        opened = [token for token in tuple(self._join.values()) if not token.spent and parse_time(token.expires) > now]
        return tuple(
            JoinTokenView(token.id, token.role, token.expires, token.name) for token in sorted(opened, key=lambda one: one.expires)
        )

    def role_of(self, text: str) -> Role:
        """Return what a join token admits.

        Raises:
            Unauthenticated: The token is unknown.
        """
        return self._find(text).role

    def redeem(self, text: str, name: str, key_sha256: str) -> None:
        """Bind the token to this name and key, or repeat what it is bound to; durable before it returns.

        Raises:
            Unauthenticated: The token is unknown.
            PermissionDenied: It has expired, is used up, or is bound to another key or name.
            Unavailable: The file cannot be written; nothing changed.
        """
        with self._lock:
            token = self._find(text)
            if token.spent:
                raise PermissionDenied(f"join token {token.id} was used by {token.name}, which has been in session since; create a new one")
            if parse_time(token.expires) <= self._clock.now():
                raise PermissionDenied(f"join token {token.id} expired at {token.expires}; create a new one")
            if token.key_sha256 and token.key_sha256 != key_sha256:
                raise PermissionDenied(f"join token {token.id} was used by {token.name} with another key; create a new one")
            if token.name and token.name != name:
                raise PermissionDenied(f"join token {token.id} was used by {token.name}, it cannot be used by {name}; create a new one")
            if not token.key_sha256:
                self._save(_Change(join=msgspec.structs.replace(token, name=name, key_sha256=key_sha256)))

    def settles(self, name: str, key_sha256: str) -> bool:
        """Return whether a session of this name and key would use up a token."""
        return (name, key_sha256) in self._bound

    def settle(self, name: str, key_sha256: str) -> None:
        """Use up the tokens of a board that came into session.

        Raises:
            Unavailable: The file cannot be written; nothing changed.
        """
        with self._lock:
            for id_ in sorted(self._bound.get((name, key_sha256), ())):
                self._save(_Change(join=msgspec.structs.replace(self._join[id_], spent=True)))

    def _find(self, text: str) -> _JoinToken:
        prefix, _, rest = text.partition(".")
        id_, _, secret = rest.partition(".")
        token = self._join.get(id_)
        if prefix != "rkj1" or token is None or token.sha256 != _sha256(secret):
            raise Unauthenticated("the join token is unknown to this controller; create one: rkfleet join-token create")
        return token

    def _forget_expired(self) -> None:
        since = format_time(self._clock.now() - REMEMBERED)
        while self._by_expiry and self._by_expiry[0][0] <= since:
            self._unbind(self._join.pop(heapq.heappop(self._by_expiry)[1]))

    def _save(self, change: _Change) -> None:
        """Keep a change on the disk, then in memory."""
        if self._file.wants_whole:
            self._file.replace(_File(api=tuple(self._api.values()), join=tuple(self._join.values())))
        self._file.append(change)
        self._hold(change)

    def _hold(self, change: _Change) -> None:
        if (api := change.api) is not None:
            for key in [key for key, token in self._api.items() if (token.name, token.role) == (api.name, api.role)]:
                del self._api[key]
            self._api[api.sha256] = api
        if (join := change.join) is not None:
            if (before := self._join.get(join.id)) is not None:
                self._unbind(before)
            else:
                heapq.heappush(self._by_expiry, (join.expires, join.id))
            self._join[join.id] = join
            if join.key_sha256 and not join.spent:
                self._bound.setdefault((join.name, join.key_sha256), set()).add(join.id)

    def _unbind(self, token: _JoinToken) -> None:
        ids = self._bound.get((token.name, token.key_sha256), set())
        ids.discard(token.id)
        if not ids:
            self._bound.pop((token.name, token.key_sha256), None)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def without_join_tokens(content: bytes) -> bytes:
    """Return one of the TOKEN_FILES of a backup without its join tokens: nobody knows which of them were used since.

    Raises:
        FailedPrecondition: It cannot be read.
    """
    kept = []
    try:
        for text in [content] if content.startswith(b"{\n") else content.splitlines(keepends=True):
            if text is not content and not text.endswith(b"\n"):
                break  # A change that a crash cut off; it was never acknowledged.
            value = msgspec.json.decode(text, type=dict[str, Any])
            value.pop("join", None)
            if value:
                kept.append(msgspec.json.encode(value) + b"\n")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"the tokens of the backup cannot be read: {error}; take another backup") from error
    return b"".join(kept)
