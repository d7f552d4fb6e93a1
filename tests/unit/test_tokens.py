"""API tokens and join tokens: who holds them, what they are good for, and what stays after a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.trust.tokens import JOIN_SECONDS_MAX, Identity, Tokens
from rkfleet.errors import FailedPrecondition, Invalid, PermissionDenied, Unauthenticated, Unavailable
from tests.support.clocks import ManualClock
from tests.support.disk import LimitedDisk

KEY, OTHER_KEY = "a" * 64, "b" * 64


def counting_bytes() -> Callable[[int], bytes]:
    """Return a source of secrets that never repeats itself."""
    numbers = iter(range(10**6))
    return lambda count: hashlib.sha256(str(next(numbers)).encode()).digest()[:count]


def make_tokens(directory: Path, clock: ManualClock | None = None, disk: LimitedDisk | None = None) -> Tokens:
    return Tokens(directory / "tokens.json", clock or ManualClock(), counting_bytes(), disk or LimitedDisk())


def test_an_api_token_names_its_holder_also_after_a_restart_and_is_not_in_the_file(tmp_path: Path) -> None:
    """Only a hash is kept."""
    bearer = make_tokens(tmp_path).issue_api_token("ada", "admin")
    again = make_tokens(tmp_path)
    assert again.identify(bearer) == Identity("ada", "admin", id=again.api_tokens()[0].id)
    assert again.identify("rkt1.0000") is None
    assert again.identify("") is None
    for file in (tmp_path / "tokens.json", tmp_path / "tokens.json.log"):
        assert bearer.removeprefix("rkt1.") not in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_new_api_token_of_a_holder_ends_the_one_before(tmp_path: Path) -> None:
    """There is one valid token for each name and role."""
    tokens = make_tokens(tmp_path)
    old, new = tokens.issue_api_token("gw", "gateway"), tokens.issue_api_token("gw", "gateway")
    assert (tokens.identify(old), tokens.identify(new)) == (None, Identity("gw", "gateway", id=tokens.api_tokens()[0].id))


def test_a_join_token_may_be_used_again_by_the_same_key_until_its_first_session(tmp_path: Path) -> None:
    """A kill between answer and disk does not lock a board out."""
    tokens = make_tokens(tmp_path)
    token, _ = tokens.create_join_token("board")
    tokens.redeem(token, "b-1", KEY)
    tokens = make_tokens(tmp_path)
    tokens.redeem(token, "b-1", KEY)
    assert tokens.settles("b-1", KEY)
    tokens.settle("b-1", KEY)
    assert not tokens.settles("b-1", KEY)
    with pytest.raises(PermissionDenied, match="used by b-1, which has been in session since"):
        make_tokens(tmp_path).redeem(token, "b-1", KEY)


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [("b-1", OTHER_KEY, "used by b-1 with another key"), ("b-2", KEY, "used by b-1, it cannot be used by b-2")],
)
def test_a_used_join_token_is_refused_to_another_key_and_for_another_name(tmp_path: Path, name: str, key: str, reason: str) -> None:
    """The first use binds it, and the holder may still use it."""
    tokens = make_tokens(tmp_path)
    token, _ = tokens.create_join_token("board")
    tokens.redeem(token, "b-1", KEY)
    with pytest.raises(PermissionDenied, match=reason):
        tokens.redeem(token, name, key)
    tokens.redeem(token, "b-1", KEY)


def test_a_join_token_lives_an_hour(tmp_path: Path) -> None:
    """Its refusal says when it expired; a day later it is unknown."""
    clock = ManualClock()
    tokens = make_tokens(tmp_path, clock)
    token, expires = tokens.create_join_token("board")
    assert expires == "2026-01-01T01:00:00Z"
    clock.advance(3599)
    tokens.redeem(token, "b-1", KEY)
    clock.advance(1)
    with pytest.raises(PermissionDenied, match="expired at 2026-01-01T01:00:00Z"):
        tokens.redeem(token, "b-1", KEY)
    clock.advance(86_400)
    tokens.create_join_token("board")
    with pytest.raises(Unauthenticated):
        tokens.redeem(token, "b-1", KEY)


@pytest.mark.parametrize("text", ["", "rkj1", "rkj1.x.y", "rkj1..", "rkt1.{id}.{secret}", "rkj1.{id}.0000", "{secret}"])
def test_an_unknown_join_token_is_refused(tmp_path: Path, text: str) -> None:
    """Neither a guess nor a part of a token is a token."""
    tokens = make_tokens(tmp_path)
    _, id_, secret = tokens.create_join_token("board")[0].split(".")
    with pytest.raises(Unauthenticated, match="unknown to this controller; create one: rkfleet join-token create"):
        tokens.redeem(text.format(id=id_, secret=secret), "b-1", KEY)


def test_join_tokens_are_listed_without_their_secrets_until_they_are_used_up(tmp_path: Path) -> None:
    """The list says who used which."""
    clock = ManualClock()
    tokens = make_tokens(tmp_path, clock)
    first, _ = tokens.create_join_token("board", 60)
    second, _ = tokens.create_join_token("gateway", 120)
    tokens.redeem(first, "b-1", KEY)
    assert [(view.role, view.used_by) for view in tokens.join_tokens()] == [("board", "b-1"), ("gateway", "")]
    assert not any(second.endswith(view.id) for view in tokens.join_tokens())
    tokens.settle("b-1", KEY)
    assert [view.role for view in tokens.join_tokens()] == ["gateway"]
    clock.advance(120)
    assert tokens.join_tokens() == ()


@pytest.mark.parametrize("seconds", [0, -1, JOIN_SECONDS_MAX + 1])
def test_the_lifetime_of_a_join_token_has_limits(tmp_path: Path, seconds: int) -> None:
    """The message names value and limit."""
    with pytest.raises(Invalid, match=f"is {seconds} s, must be 1..604800"):
        make_tokens(tmp_path).create_join_token("board", seconds)


def test_on_a_full_disk_nothing_changes_and_the_caller_is_told(tmp_path: Path) -> None:
    """A token that was not written down was not given out, and a redeemed one not bound."""
    disk = LimitedDisk()
    tokens = make_tokens(tmp_path, disk=disk)
    token, _ = tokens.create_join_token("board")
    disk.room = 0
    changes: list[Callable[[], object]] = [
        lambda: tokens.redeem(token, "b-1", KEY),
        lambda: tokens.create_join_token("board"),
        lambda: tokens.issue_api_token("ada", "admin"),
    ]
    for change in changes:
        with pytest.raises(Unavailable, match=r"tokens\.json(\.log)? cannot be written: No space left on device"):
            change()
    disk.room = None
    tokens.redeem(token, "b-2", OTHER_KEY)
    assert len(tokens.join_tokens()) == 1


def test_a_damaged_file_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """Starting without tokens would lock everybody out in silence."""
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"tokens\.json cannot be read"):
        make_tokens(tmp_path)


def test_a_line_of_the_log_without_an_end_was_never_acknowledged(tmp_path: Path) -> None:
    """A crash in the middle of a write costs the change that nobody was told of, and no other."""
    tokens = make_tokens(tmp_path)
    kept, _ = tokens.create_join_token("board")
    tokens.create_join_token("board")
    log = tmp_path / "tokens.json.log"
    log.write_bytes(log.read_bytes()[:-10])
    again = make_tokens(tmp_path)
    assert len(again.join_tokens()) == 1
    again.redeem(kept, "b-1", KEY)
    assert [one.used_by for one in make_tokens(tmp_path).join_tokens()] == ["b-1"]


def test_joining_a_fleet_appends_and_the_log_is_emptied_now_and_then(tmp_path: Path) -> None:
    """What is known does not depend on how it is kept; the log stays short."""
    tokens = Tokens(tmp_path / "tokens.json", ManualClock(), counting_bytes(), log_lines_max=20)
    for number in range(9):
        token, _ = tokens.create_join_token("board")
        tokens.redeem(token, f"b-{number}", KEY)
        tokens.settle(f"b-{number}", KEY)
    tokens.create_join_token("board")
    assert len((tmp_path / "tokens.json.log").read_bytes().splitlines()) <= 20
    again = make_tokens(tmp_path)
    assert again.join_tokens() == tokens.join_tokens()
    assert not again.settles("b-3", KEY)
    with pytest.raises(PermissionDenied, match="was used by b-"):
        again.redeem(token, "b-x", KEY)
