"""API tokens and join tokens, hashed at rest in the files of `token_file.py` or the table of `token_table.py`.

In: what callers present. Out: who they are, or a refusal with its reason. API requests ask `identify`, answered from `api_tokens.py`; the
enrolment routes `redeem` join tokens; the session hub `settle`s them. It stands apart from the store because tokens are secrets of this
installation, not declared state, and because a restored database must not bring used tokens back to life.

Everything is decided with the place of the tokens held exclusively, after what other controllers changed was taken in; `refresh` takes
that in when there is nothing to decide.

A join token `rkj1.<id>.<secret>` lives an hour. Its first use binds it to the key of that certificate request and to one name. The same key
may repeat until the board's first session, so that a kill between answer and disk does not lock the board out; any other key is refused.

Methods block for a file sync when they change something and are safe to call from any thread.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from controller.trust.api_tokens import ApiRole, ApiToken, ApiTokens, ApiTokenView, Identity, sha256_of
from controller.trust.files import make_private_directory
from controller.trust.token_file import LINES_MAX, TokenFile
from controller.trust.token_table import TokenTable
from rkfleet.clock import Clock, format_time, parse_time
from rkfleet.disk import Disk, SystemDisk
from rkfleet.enrolment import JOIN_SECONDS_DEFAULT, Role
from rkfleet.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    Invalid,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)

__all__ = ["TOKEN_FILES", "ApiRole", "ApiTokenView", "Identity", "JoinTokenView", "Tokens", "without_join_tokens"]

TOKEN_FILES: Final = ("tokens.json", "tokens.json.log")

API_TOKENS_MAX: Final = 1_000  # A thousand people and programs; each is looked at when one is made.
API_SECONDS_MAX: Final = 10 * 365 * 86400  # Longer than any token should live; one without an end says so.
JOIN_SECONDS_MAX: Final = 7 * 86400  # A token that outlives the week it was made for is forgotten about, not used.
JOIN_TOKENS_MAX: Final = 10_000  # Twice the boards of the largest fleet; each is written with every change of the file.
REMEMBERED: Final = timedelta(days=1)  # How long an expired token is still named, in its refusal or in the list.
_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 20  # 160 bits: guessing is hopeless, so a plain hash keeps it safe at rest.


class JoinTokenView(NamedTuple):
    """What may be shown about a join token: everything but its secret."""

    id: str
    role: Role
    expires: str
    used_by: str


class _JoinToken(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    id: str
    role: Role
    sha256: str
    expires: str
    name: str = ""
    key_sha256: str = ""
    spent: bool = False


class _File(msgspec.Struct, frozen=True, rename="camel"):
    api: tuple[ApiToken, ...] = ()
    join: tuple[_JoinToken, ...] = ()


class _Change(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One token as it is now; a new API token ends the one that its holder had in that role. `revoked` is the id of one that ends."""

    api: ApiToken | None = None
    join: _JoinToken | None = None
    revoked: str = ""


class Tokens:
    """All tokens of one installation, in memory and in their files."""

    def __init__(
        self,
        place: Path | str,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        disk: Disk = SystemDisk(),
        log_lines_max: int = LINES_MAX,
    ) -> None:
        """Load what is there, which may be nothing.

        Args:
            place: `tokens.json`, whose log is beside it; or, as text, the URL of a database that several controllers share.
            clock: Judges the lifetime of tokens.
            random_bytes: Source of secrets, `os.urandom` in the running program.
            disk: Disk that the files are on.
            log_lines_max: Changes after which all tokens are written anew.

        Raises:
            FailedPrecondition: A file or row is there and cannot be read.
            Unavailable: The database does not answer.
        """
        self._clock: Final = clock
        self._random_bytes: Final = random_bytes
        self._lock: Final = threading.Lock()
        self._kept: Final = self._place(place, disk, log_lines_max)
        self._saved: Final[list[_Change]] = []  # Inside of `_exclusive`.
        self._api: Final = ApiTokens(clock)
        self._join: Final[dict[str, _JoinToken]] = {}
        self._by_expiry: Final[list[tuple[str, str]]] = []  # A heap; times of this format sort as text.
        self._bound: Final[dict[tuple[str, str], set[str]]] = {}  # Ids of tokens that are bound and not used up, by name and key.
        self._take_in(self._kept.load())

    @staticmethod
    def _place(place: Path | str, disk: Disk, changes_max: int) -> TokenFile[_File, _Change] | TokenTable[_File, _Change]:
        if isinstance(place, str):
            return TokenTable(place, _File, _Change, changes_max)
        make_private_directory(place.parent)
        return TokenFile(place, _File, _Change, disk, changes_max)

    def close(self) -> None:
        """Let go of the place."""
        self._kept.close()

    def identify(self, bearer: str) -> Identity | None:
        """Return whose API token this is, or None: nobody's, or one that has expired."""
        return self._api.identify(bearer)

    def refresh(self) -> None:
        """Take in what other controllers changed.

        Raises:
            Unavailable: The database does not answer.
        """
        with self._exclusive():
            pass

    def issue_api_token(self, name: str, role: ApiRole) -> str:
        """Return a new API token of `name` that does not expire; the one it had before in that role ends.

        Raises:
            Unavailable: It cannot be kept; nothing changed.
        """
        bearer, token = self._new_api_token(name, role)
        with self._exclusive():
            self._save(_Change(api=token))
        return bearer

    def create_api_token(
        self, name: str, role: ApiRole, namespaces: Sequence[str] = (), lifetime_seconds: int | None = None
    ) -> tuple[str, ApiTokenView]:
        """Return a new API token and what may be shown about it; it counts in `namespaces`, or everywhere.

        Raises:
            Invalid: The lifetime is outside 1..API_SECONDS_MAX.
            AlreadyExists: Somebody has a token of this name.
            ResourceExhausted: There are API_TOKENS_MAX.
            Unavailable: It cannot be kept; nothing changed.
        """
        if lifetime_seconds is not None and not 1 <= lifetime_seconds <= API_SECONDS_MAX:
            raise Invalid(f"lifetime of a token is {lifetime_seconds} s, must be 1..{API_SECONDS_MAX}; leave it out for one without an end")
        bearer, token = self._new_api_token(name, role)
        expires = "" if lifetime_seconds is None else format_time(self._clock.now() + timedelta(seconds=lifetime_seconds))
        token = msgspec.structs.replace(token, namespaces=tuple(sorted(set(namespaces))), expires=expires)
        with self._exclusive():
            expired = self._api.expired_before(self._clock.now())
            if before := [one for one in self._api.named(name) if one not in expired]:
                raise AlreadyExists(f"{name} has a token already, {before[0].shown_id}; revoke it first: rkfleet token revoke {name}")
            forgotten = self._api.expired_before(self._clock.now() - REMEMBERED)
            gone = [one for one in expired if one.name == name or one in forgotten]
            if (count := sum(1 for _ in self._api) - len(gone)) >= API_TOKENS_MAX:
                raise ResourceExhausted(
                    f"there are {count} API tokens, at most {API_TOKENS_MAX} are allowed; revoke some: rkfleet token list"
                )
            for old in gone:
                self._save(_Change(revoked=old.shown_id))
            self._save(_Change(api=token))
        return bearer, next(view for view in self._api.views() if view.id == token.id)

    def api_tokens(self) -> tuple[ApiTokenView, ...]:
        """Return what may be shown about all API tokens, by name; one that expired is shown for a day more."""
        return self._api.views()

    def revoke_api_token(self, name_or_id: str) -> ApiTokenView:
        """End a token now and return what it was.

        Raises:
            NotFound: There is none.
            Conflict: Several have this name.
            Unavailable: It cannot be kept; nothing changed.
        """
        with self._exclusive():
            found = self._api.named(name_or_id)
            if not found:
                raise NotFound(f"there is no API token {name_or_id!r}; see: rkfleet token list")
            if len(found) > 1:
                ids = ", ".join(f"{one.shown_id} ({one.role})" for one in found)
                raise Conflict(f"{len(found)} API tokens are named {name_or_id!r}; name one by its id: {ids}")
            id_ = found[0].shown_id
            view = next(view for view in self._api.views() if view.id == id_)
            self._save(_Change(revoked=id_))
        return view

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
        with self._exclusive():
            self._forget_expired()
            if len(self._join) >= JOIN_TOKENS_MAX:
                raise ResourceExhausted(
                    f"{len(self._join)} join tokens are open, at most {JOIN_TOKENS_MAX} are allowed; some expire within the hour"
                )
            self._save(_Change(join=_JoinToken(id=id_, role=role, sha256=sha256_of(secret), expires=expires)))
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
        with self._exclusive():
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
        for id_ in sorted(self._bound.get((name, key_sha256), ())):
            with self._exclusive():
                if (token := self._join.get(id_)) is not None and not token.spent:
                    self._save(_Change(join=msgspec.structs.replace(token, spent=True)))

    def _find(self, text: str) -> _JoinToken:
        prefix, _, rest = text.partition(".")
        id_, _, secret = rest.partition(".")
        token = self._join.get(id_)
        if prefix != "rkj1" or token is None or token.sha256 != sha256_of(secret):
            raise Unauthenticated("the join token is unknown to this controller; create one: rkfleet join-token create")
        return token

    def _forget_expired(self) -> None:
        since = format_time(self._clock.now() - REMEMBERED)
        while self._by_expiry and self._by_expiry[0][0] <= since:
            self._unbind(self._join.pop(heapq.heappop(self._by_expiry)[1]))

    def _new_api_token(self, name: str, role: ApiRole) -> tuple[str, ApiToken]:
        id_, bearer = self._random_bytes(_ID_BYTES).hex(), f"rkt1.{self._random_bytes(_SECRET_BYTES).hex()}"
        return bearer, ApiToken(name=name, role=role, sha256=sha256_of(bearer), id=id_, created=format_time(self._clock.now()))

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let nobody else decide inside the block; what is saved in it counts, here as well, from its end."""
        with self._lock:
            self._saved.clear()
            with self._kept.exclusive() as others:
                self._take_in(others)
                yield
            self._take_in(self._saved)

    def _save(self, change: _Change) -> None:
        """Keep a change; it is held at the end of the block, when it counts."""
        if self._kept.wants_whole and not self._saved:
            self._kept.replace(_File(api=tuple(self._api), join=tuple(self._join.values())))
        self._kept.append(change)
        self._saved.append(change)

    def _take_in(self, found: Sequence[_File | _Change]) -> None:
        for one in found:
            if isinstance(one, _Change):
                self._hold(one)
                continue
            for change in (*(_Change(api=token) for token in one.api), *(_Change(join=token) for token in one.join)):
                self._hold(change)

    def _hold(self, change: _Change) -> None:
        if change.api is not None:
            self._api.hold(change.api)
        if change.revoked:
            self._api.end(change.revoked)
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
