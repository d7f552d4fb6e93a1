"""API keys of clients: a file of hashed keys with names, who a key belongs to, and whose prompts a runtime may compare.

In: a file, one key a line, `NAME sha256:HEX`; a request's Authorization header. Out: the key's name, and the tenant that stands for it
towards boards. Used by the gateway and by boards that serve clients of other machines; `rkfleet gateway-keys add` writes lines. A line may
also be the key itself, as `rkfleet gateway-keys create` writes the first one for people to copy; its name is made from its hash.

Keys are random and long, so a plain hash of them tells nothing: there is nothing to guess from. Two keys with one name are one tenant,
which lets a key be replaced while its successor is in use.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.errors import Invalid

__all__ = ["ApiKey", "ApiKeys", "Attempts", "key_line", "new_key", "parse_api_keys", "read_api_keys", "tenant_of"]

KEY_BYTES: Final = 24  # 192 random bits.
KEY_CHARACTERS_MIN: Final = 16  # A key beyond loopback is guessed from afar; sixteen random characters are not.
NAME_CHARACTERS_MAX: Final = 63

FAILURES_MAX: Final = 10  # Wrong keys from one address within a period: a person's mistakes, not a program's guesses.
FAILURES_SECONDS: Final = 60.0
ADDRESSES_MAX: Final = 1024  # About 100 kB; the oldest is forgotten first.

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HASHED: Final = re.compile(r"sha256:([0-9a-f]{64})")


class ApiKey(msgspec.Struct, frozen=True, gc=False):
    """One key: whom it belongs to, and the hex sha256 of its text."""

    name: str
    sha256: str


class ApiKeys(msgspec.Struct, frozen=True):
    """Every key that is let in."""

    keys: tuple[ApiKey, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there is any; without one nobody is asked for a key."""
        return bool(self.keys)

    def name_of(self, authorization: bytes) -> str | None:
        """Return the name of the key in an Authorization header (`Bearer KEY`), or None. It takes the same time for every wrong key."""
        scheme, _, given = authorization.partition(b" ")
        digest = hashlib.sha256(given.strip()).hexdigest()
        found: str | None = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key.name
        return found if scheme.lower() == b"bearer" else None


def new_key() -> str:
    """Return a new random key."""
    return secrets.token_hex(KEY_BYTES)


def key_line(name: str, key: str) -> str:
    """Return the line of a key for the file.

    Raises:
        Invalid: The name is none.
    """
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise Invalid(f"key name {name[:80]!r} must be letters, digits, dots, dashes and underscores, at most {NAME_CHARACTERS_MAX}")
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"


def parse_api_keys(text: str, origin: str) -> ApiKeys:
    """Read the text of a file of keys.

    Args:
        text: One key a line; empty lines and lines that begin with # are passed over.
        origin: How messages name the file.

    Raises:
        Invalid: A line is no key, or there is none at all.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        hashed = _HASHED.fullmatch(words[-1])
        if len(words) == 2 and hashed and _NAME.fullmatch(words[0]) and len(words[0]) <= NAME_CHARACTERS_MAX:
            keys.append(ApiKey(words[0], hashed[1]))
        elif len(words) == 1 and not hashed and len(words[0]) >= KEY_CHARACTERS_MIN:
            digest = hashlib.sha256(words[0].encode()).hexdigest()
            keys.append(ApiKey(f"key-{digest[:8]}", digest))
        else:
            raise Invalid(f"{origin}: line {number} must be NAME sha256:HEX, or one key of at least {KEY_CHARACTERS_MIN} characters")
    if not keys:
        raise Invalid(f"{origin} must hold at least one key; make one with: rkfleet gateway-keys add FILE --name NAME")
    return ApiKeys(tuple(keys))


def read_api_keys(path: Path, flag: str) -> ApiKeys:
    """Read a file of keys that a flag named.

    Raises:
        Invalid: It cannot be read, or is no such file.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{flag}: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_api_keys(text, f"{flag}: {path}")


def tenant_of(realm: str, name: str) -> str:
    """Return what stands for a key's owner towards boards and runtimes: opaque, the same for the same name of the same realm."""
    return hashlib.sha256(f"rkfleet tenant {realm} {name}".encode()).hexdigest()[:32]


class Attempts:
    """Wrong keys by address, so that guessing has a limit: FAILURES_MAX in FAILURES_SECONDS."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._failures: Final[OrderedDict[str, list[float]]] = OrderedDict()

    def wait_seconds(self, address: str) -> int:
        """Return how long this address is not listened to any more; 0 when it may try."""
        failures = self._recent(self._failures.get(address, ()))
        if len(failures) < FAILURES_MAX:
            return 0
        return max(1, round(failures[0] + FAILURES_SECONDS - self._clock.monotonic()))

    def failed(self, address: str) -> None:
        """Count a wrong key."""
        failures = [*self._recent(self._failures.pop(address, ())), self._clock.monotonic()]
        self._failures[address] = failures[-FAILURES_MAX:]
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def _recent(self, failures: Iterable[float]) -> list[float]:
        oldest = self._clock.monotonic() - FAILURES_SECONDS
        return [moment for moment in failures if moment > oldest]
