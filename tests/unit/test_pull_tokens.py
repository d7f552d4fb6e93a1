"""Registry tokens: what a signed token says, what makes it invalid, and what a board is granted."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from controller.trust.pull_tokens import GRANT_SECONDS, Access, Claims, GrantIssuer, OwnTokens, TokenSigner, TokenVerifier, parse_scope
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment
from rkfleet.errors import FailedPrecondition, Invalid, Unauthenticated
from rkfleet.registry_client import Challenge
from tests.support.clocks import ManualClock

A, B, C = (f"sha256:{number:064x}" for number in range(3))
CLAIMS = Claims("admin", (Access("default/a", ("pull", "push")),))


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


CLOCK = ManualClock()
KEY = ed25519.Ed25519PrivateKey.generate()
SIGNER = TokenSigner(pem(KEY), CLOCK)
VERIFIER = TokenVerifier(public_pem(KEY), CLOCK)


def test_a_verified_token_says_what_was_signed() -> None:
    claims = Claims("board:b1", (Access("default/a", ("pull",)),), frozenset({A, B}))
    assert VERIFIER.verify(SIGNER.sign(claims)) == claims
    assert claims.allows("default/a", "pull", A)
    assert not claims.allows("default/a", "pull", C)
    assert not claims.allows("default/a", "pull")
    assert not claims.allows("default/b", "pull", A)
    assert not claims.allows("default/a", "push", A)


def test_a_token_ends_by_the_clock_of_the_verifier() -> None:
    clock = ManualClock()
    verifier = TokenVerifier(public_pem(KEY), clock)
    token = SIGNER.sign(CLAIMS, 100)
    clock.advance(120)
    assert verifier.verify(token) == CLAIMS
    clock.advance(20)
    with pytest.raises(Unauthenticated, match="token ended 40 s ago"):
        verifier.verify(token)
    clock.advance(-300)
    with pytest.raises(Unauthenticated, match="token begins in 160 s"):
        verifier.verify(token)


def test_a_token_that_is_not_ours_is_refused() -> None:
    stranger = TokenSigner(pem(ed25519.Ed25519PrivateKey.generate()), CLOCK)
    for token in (stranger.sign(CLAIMS), "", "x.y.z", "a" * 20_000):
        with pytest.raises(Unauthenticated):
            VERIFIER.verify(token)
    head, body, signature = SIGNER.sign(CLAIMS).split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed["access"][0]["name"] = "default/b"
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    for token in (f"{head}.{forged}.{signature}", f"{none}.{body}."):
        with pytest.raises(Unauthenticated):
            VERIFIER.verify(token)


def test_another_kind_of_key_is_refused_at_the_start() -> None:
    with pytest.raises(FailedPrecondition, match="Ed25519"):
        TokenSigner(pem(ec.generate_private_key(ec.SECP256R1())), CLOCK)


def test_scopes_are_read_as_clients_write_them() -> None:
    assert parse_scope("repository:default/a:pull,push") == (Access("default/a", ("pull", "push")),)
    assert parse_scope("repository:a:* registry:catalog:* repository:b:delete") == (Access("a", ("pull", "push")), Access("b", ()))
    with pytest.raises(Invalid, match="is not repository:"):
        parse_scope("repository:UPPER:pull")


def replica(name: str, model: str, *digests: str) -> AssignedReplica:
    return AssignedReplica(
        namespace="default", name=name, uid=name, generation=1, model=model, served_model_name=model, variant="v", soc="any", dtype="q4",
        runtime="llamacpp", files=tuple(AssignedFile(path=str(n), digest=digest, size_bytes=1) for n, digest in enumerate(digests)),
    )  # fmt: skip


def test_a_board_is_granted_the_bytes_of_its_assignment_and_nothing_else() -> None:
    assignment = Assignment(replicas=(replica("r1", "m1", A), replica("r2", "m2", A, B)))

    async def assigned(board: str) -> Assignment | None:
        return assignment if board == "b1" else None

    issuer = GrantIssuer(SIGNER, "https://registry:7445/", assigned)
    grant = asyncio.run(issuer.grant("b1", [A, B]))
    assert grant.sources == ("https://registry:7445/v2/default/m1", "https://registry:7445/v2/default/m2")
    assert (grant.expires_in_seconds, grant.refusal) == (GRANT_SECONDS, "")
    claims = VERIFIER.verify(grant.token)
    assert (claims.subject, claims.digests) == ("board:b1", {A, B})
    assert claims.allows("default/m2", "pull", B)
    for board, digests, said in (("b1", [C], f"{C} belongs to no replica"), ("b2", [A], "belongs to no replica"), ("b1", [], "asks for 0")):
        refused = asyncio.run(issuer.grant(board, digests))
        assert said in refused.refusal
        assert refused.token == ""


def test_the_controllers_own_token_only_looks() -> None:
    token = asyncio.run(OwnTokens(SIGNER).token(Challenge("realm", "service", "repository:default/a:pull,push")))
    assert VERIFIER.verify(token).access == (Access("default/a", ("pull",)),)
