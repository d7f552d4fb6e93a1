"""API tokens of people and services: how long they live, where they count, how they end, on files and on a shared database."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from controller.trust.tokens import API_SECONDS_MAX, Tokens
from rkfleet.errors import AlreadyExists, Conflict, Invalid, NotFound, PermissionDenied, Unavailable
from tests.support.clocks import ManualClock
from tests.support.disk import LimitedDisk
from tests.support.postgres import postgres_url
from tests.unit.test_tokens import counting_bytes, make_tokens


def test_a_token_has_a_role_in_namespaces_until_it_expires(tmp_path: Path) -> None:
    """Also after a restart; the list shows when it was used last, and the secret nowhere."""
    clock = ManualClock()
    tokens = make_tokens(tmp_path, clock)
    bearer, view = tokens.create_api_token("bob", "viewer", ("lab", "home", "lab"), 60)
    assert view[1:] == ("bob", "viewer", ("home", "lab"), "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "")
    tokens = make_tokens(tmp_path, clock)
    clock.advance(59)
    identity = tokens.identify(bearer)
    assert identity == ("bob", "viewer", ("home", "lab"), view.id)
    assert tokens.api_tokens() == (view._replace(last_used="2026-01-01T00:00:59Z"),)
    assert bearer.removeprefix("rkt1.") not in repr(tokens.api_tokens())
    clock.advance(1)
    assert tokens.identify(bearer) is None


def test_a_revoked_token_ends_at_once_and_stays_ended(tmp_path: Path) -> None:
    """By name or by id."""
    tokens = make_tokens(tmp_path)
    bearers = [tokens.create_api_token(name, "operator") for name in ("ada", "bob", "eve")]
    assert tokens.revoke_api_token("ada").name == "ada"
    assert tokens.revoke_api_token(bearers[1][1].id).name == "bob"
    for one in (tokens, make_tokens(tmp_path)):
        assert [one.identify(bearer) is None for bearer, _ in bearers] == [True, True, False]
    with pytest.raises(NotFound, match="rkfleet token list"):
        tokens.revoke_api_token("ada")


def test_a_name_has_one_token_until_that_one_ends(tmp_path: Path) -> None:
    """What has expired is no obstacle, in whatever role it was."""
    clock = ManualClock()
    tokens = make_tokens(tmp_path, clock)
    tokens.create_api_token("ada", "admin", lifetime_seconds=60)
    with pytest.raises(AlreadyExists, match="rkfleet token revoke ada"):
        tokens.create_api_token("ada", "viewer")
    clock.advance(60)
    tokens.create_api_token("ada", "viewer")
    assert [view.role for view in make_tokens(tmp_path, clock).api_tokens()] == ["viewer"]


def test_a_name_that_several_hold_is_revoked_by_id(tmp_path: Path) -> None:
    """A gateway may have the name of a person."""
    tokens = make_tokens(tmp_path)
    tokens.issue_api_token("ada", "gateway")
    tokens.issue_api_token("ada", "admin")
    with pytest.raises(Conflict, match="name one by its id"):
        tokens.revoke_api_token("ada")
    for view in tokens.api_tokens():
        tokens.revoke_api_token(view.id)
    assert tokens.api_tokens() == ()


@pytest.mark.parametrize("seconds", [0, -1, API_SECONDS_MAX + 1])
def test_the_lifetime_of_an_api_token_has_limits(tmp_path: Path, seconds: int) -> None:
    """Nothing lives for minus one second."""
    with pytest.raises(Invalid, match="leave it out"):
        make_tokens(tmp_path).create_api_token("ada", "viewer", lifetime_seconds=seconds)


def test_files_of_before_tokens_had_ids_are_read(tmp_path: Path) -> None:
    """Such a token counts everywhere, lives on, and can be revoked by what the list calls it."""
    sha256 = hashlib.sha256(b"rkt1.old").hexdigest()
    (tmp_path / "tokens.json").write_text(f'{{"api": [{{"name": "ada", "role": "admin", "sha256": "{sha256}"}}], "join": []}}')
    tokens = make_tokens(tmp_path)
    identity = tokens.identify("rkt1.old")
    assert identity is not None
    assert identity[:3] == ("ada", "admin", ())
    tokens.revoke_api_token(tokens.api_tokens()[0].id)
    assert make_tokens(tmp_path).identify("rkt1.old") is None


def test_a_token_that_cannot_be_kept_was_never_made(tmp_path: Path) -> None:
    """Nor is one ended that cannot be."""
    disk = LimitedDisk()
    tokens = make_tokens(tmp_path, disk=disk)
    bearer, _ = tokens.create_api_token("ada", "viewer")
    disk.room = 0
    with pytest.raises(Unavailable):
        tokens.create_api_token("bob", "viewer")
    with pytest.raises(Unavailable):
        tokens.revoke_api_token("ada")
    assert tokens.identify(bearer) is not None
    assert [view.name for view in tokens.api_tokens()] == ["ada"]


def test_controllers_that_share_a_database_share_tokens(tmp_path: Path) -> None:
    """One knows a token of the other when it looks, makes none of a name that the other gave away, and binds a join token once."""
    url = postgres_url()
    numbers = counting_bytes()
    with contextlib.closing(Tokens(url, ManualClock(), numbers)) as one, contextlib.closing(Tokens(url, ManualClock(), numbers)) as other:
        bearer, view = one.create_api_token("ada", "viewer", ("lab",))
        with pytest.raises(AlreadyExists):
            other.create_api_token("ada", "admin")
        assert other.identify(bearer) == ("ada", "viewer", ("lab",), view.id)
        join, _ = one.create_join_token("board")
        other.refresh()
        other.redeem(join, "b-1", "a" * 64)
        with pytest.raises(PermissionDenied, match="used by b-1"):
            one.redeem(join, "b-2", "b" * 64)
        other.revoke_api_token("ada")
        one.refresh()
        assert one.identify(bearer) is None
