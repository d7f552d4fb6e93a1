"""Tokens for bytes: who may push and pull which repositories, and which digests.

The controller signs (`TokenSigner`), the registry verifies (`TokenVerifier`); they share nothing but an Ed25519 key pair, so the
registry needs no way to ask the controller. Callers: `controller/api/registry_tokens.py` for people and tools, `GrantIssuer` for
boards over their session, the model loop for its own look at the registry. It stands apart because it is the only place where a claim
is written or believed.

A token is a JWT with the `access` claim of Docker Registry v2 tokens, signed with EdDSA. A board's token also has `digests`: it opens
exactly those blobs.

Source: distribution `docs/content/spec/auth/{token,jwt,scope}.md`; RFC 7519, RFC 8037.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from rkfleet.assignment import Assignment
from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition, Invalid, PermissionDenied, Unauthenticated
from rkfleet.packaging import repository_name
from rkfleet.registry_client import Challenge
from rkfleet.session import Grant

__all__ = [
    "GRANT_SECONDS",
    "SERVICE",
    "TOKEN_SECONDS",
    "Access",
    "Claims",
    "GrantIssuer",
    "OwnTokens",
    "TokenSigner",
    "TokenVerifier",
    "parse_scope",
]

SERVICE: Final = "rkfleet-registry"
ISSUER: Final = "rkfleet-controller"
ALGORITHM: Final = "EdDSA"
TOKEN_SECONDS: Final = 3600  # A push of the largest models over a slow link; the client fetches another when it ends.
GRANT_SECONDS: Final = 900  # Checked at the start of each chunk's request; the board asks for another when it ends.
LEEWAY_SECONDS: Final = 30  # Controller and registry may run on two machines; boards' clocks are never asked.
TOKEN_BYTES_MAX: Final = 16384  # A grant names at most DIGESTS_MAX digests; header lines beyond this are a mistake.
DIGESTS_MAX: Final = 64  # Files of one variant (`Artifact.files`).
ACTIONS: Final = ("pull", "push")

_SCOPE: Final = re.compile(r"repository:([a-z0-9]+(?:[._/-]+[a-z0-9]+)*):([a-z*,]+)")


class Access(msgspec.Struct, frozen=True):
    """What may be done with one repository. `actions` is a sorted tuple of pull and push."""

    repository: str
    actions: tuple[str, ...]


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says.

    Attributes:
        subject: Who holds it, for example `admin` or `board:rk3588-1`.
        access: Repositories and actions.
        digests: When not empty: the only blobs that the token opens, and no manifests.
    """

    subject: str
    access: tuple[Access, ...]
    digests: frozenset[str] = frozenset()

    def allows(self, repository: str, action: str, digest: str = "") -> bool:
        """Return whether `action` on `repository` (and on this blob) is covered."""
        if self.digests and digest not in self.digests:
            return False
        return any(one.repository == repository and action in one.actions for one in self.access)


def parse_scope(scope: str) -> tuple[Access, ...]:
    """Read a `scope` parameter: `repository:<name>:<action>[,<action>]`, several divided by spaces.

    Resource types other than `repository` are left out: nothing of them can be granted.

    Raises:
        Invalid: A repository scope cannot be read.
    """
    found: list[Access] = []
    for word in scope.split():
        if not word.startswith("repository:"):
            continue
        match = _SCOPE.fullmatch(word)
        if match is None:
            raise Invalid(f"scope {word[:300]!r} is not repository:<name>:<action>[,<action>]")
        asked = set(match.group(2).split(","))
        found.append(Access(match.group(1), tuple(action for action in ACTIONS if action in asked or "*" in asked)))
    return tuple(found)


class TokenSigner:
    """Signs tokens with the registry signing key."""

    def __init__(self, private_key_pem: bytes, clock: Clock) -> None:
        """Take the PKCS 8 PEM of an Ed25519 key.

        Raises:
            FailedPrecondition: It is another kind of key.
        """
        key = load_pem_private_key(private_key_pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise FailedPrecondition("the registry signing key must be an Ed25519 private key in PEM")
        self._key: Final = key
        self._clock: Final = clock

    def sign(self, claims: Claims, seconds: int = TOKEN_SECONDS) -> str:
        """Return a token that holds for `seconds` from now."""
        now = int(self._clock.now().timestamp())
        body: dict[str, Any] = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": claims.subject,
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "access": [{"type": "repository", "name": one.repository, "actions": list(one.actions)} for one in claims.access],
        }
        if claims.digests:
            body["digests"] = sorted(claims.digests)
        return jwt.encode(body, self._key, algorithm=ALGORITHM)


class TokenVerifier:
    """Verifies tokens with the public half of the registry signing key."""

    def __init__(self, public_key_pem: bytes, clock: Clock) -> None:
        """Take the SubjectPublicKeyInfo PEM of an Ed25519 key.

        Raises:
            FailedPrecondition: It is another kind of key.
        """
        key = load_pem_public_key(public_key_pem)
        if not isinstance(key, Ed25519PublicKey):
            raise FailedPrecondition("the registry signing key must be an Ed25519 public key in PEM")
        self._key: Final = key
        self._clock: Final = clock

    def verify(self, token: str) -> Claims:
        """Return what the token says.

        Raises:
            Unauthenticated: The token is not ours, is damaged, or has ended; the message says which.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise Unauthenticated(f"token has {len(token)} bytes, at most {TOKEN_BYTES_MAX} are allowed")
        try:
            # Times are compared below, by our clock; pyjwt would ask the machine's.
            options: Any = {
                "verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": ["exp", "nbf", "aud", "iss", "sub", "access"],
            }  # fmt: skip
            body = jwt.decode(token, self._key, algorithms=[ALGORITHM], audience=SERVICE, issuer=ISSUER, options=options)
            now = self._clock.now().timestamp()
            if now > body["exp"] + LEEWAY_SECONDS:
                raise Unauthenticated(f"token ended {now - body['exp']:.0f} s ago; ask for another")
            if now < body["nbf"] - LEEWAY_SECONDS:
                raise Unauthenticated(f"token begins in {body['nbf'] - now:.0f} s; are the clocks of controller and registry alike?")
            access = tuple(Access(one["name"], tuple(one["actions"])) for one in body["access"] if one["type"] == "repository")
            return Claims(body["sub"], access, frozenset(body.get("digests", ())))
        except (jwt.PyJWTError, KeyError, TypeError) as error:
            raise Unauthenticated(f"token is not valid: {error}") from error


class GrantIssuer:
    """Grants boards the bytes of their assignment, and nothing else."""

    def __init__(self, signer: TokenSigner, registry_url: str, assignment_of: Callable[[str], Awaitable[Assignment | None]]) -> None:
        """Take the registry's base URL as boards reach it, and a way to look up what a board is assigned now."""
        self._signer: Final = signer
        self._registry_url: Final = registry_url.rstrip("/")
        self._assignment_of: Final = assignment_of

    async def grant(self, board: str, digests: Iterable[str]) -> Grant:
        """Return sources and a token for those blobs, or the sentence that refuses them; the caller gives the answer its request id."""
        wanted = frozenset(digests)
        try:
            if not 0 < len(wanted) <= DIGESTS_MAX:
                raise PermissionDenied(f"a grant is for 1 to {DIGESTS_MAX} digests, board {board!r} asks for {len(wanted)}")
            repositories = _repositories(await self._assignment_of(board) or Assignment(), board, wanted)
        except PermissionDenied as error:
            return Grant(request_id=0, refusal=error.message)
        access = tuple(Access(repository, ("pull",)) for repository in repositories)
        token = self._signer.sign(Claims(f"board:{board}", access, wanted), GRANT_SECONDS)
        sources = tuple(f"{self._registry_url}/v2/{repository}" for repository in repositories)
        return Grant(request_id=0, sources=sources, token=token, expires_in_seconds=GRANT_SECONDS)


def _repositories(assignment: Assignment, board: str, wanted: frozenset[str]) -> tuple[str, ...]:
    """Return the repositories that hold the wanted digests, or raise PermissionDenied naming those of no replica of the board."""
    assigned: set[str] = set()
    repositories: dict[str, None] = {}
    for replica in assignment.replicas:
        held = wanted & {file.digest for file in replica.files}
        if held:
            assigned |= held
            repositories[repository_name(replica.namespace, replica.model)] = None
    if foreign := sorted(wanted - assigned):
        raise PermissionDenied(f"{foreign[0]} belongs to no replica assigned to board {board!r}")
    return tuple(repositories)


class OwnTokens:
    """The controller's own tokens: it may look at any repository, which is how the model loop knows what is missing.

    A `TokenSource` of `rkfleet/registry_client.py`.
    """

    def __init__(self, signer: TokenSigner) -> None:
        self._signer: Final = signer

    async def token(self, challenge: Challenge) -> str:
        """Return a token that pulls what the challenge is about."""
        access = tuple(Access(one.repository, ("pull",)) for one in parse_scope(challenge.scope))
        return self._signer.sign(Claims("controller", access))
