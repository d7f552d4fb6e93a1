"""Deleting a Board revokes its key: real gRPC with mutual TLS, the real loops over the real store."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from agent.session.runner import RECONNECT_AFTER_SECONDS_MAX
from controller.planning.identity import CONFLICT_SECONDS, Attempt, Held, plan_conflict, why_revoked
from controller.sessions.goodbyes import REVOKED_SECONDS
from controller.sessions.seams import Tempo
from controller.trust.binding import MACHINE_ANNOTATION, Binding
from rkfleet import conditions
from rkfleet.clock import SystemClock
from rkfleet.conditions import Condition, condition
from rkfleet.errors import PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.renew import renew
from rkfleet.renewal import Renewal
from rkfleet.session import Goodbye, GoodbyeReason
from tests.integration.test_enrollment import enrolling_world, join
from tests.support.sessions import RunningBoard, SessionWorld, board_ref, running_board, session_world, until

CUT_OFF_SECONDS = 5.0
SLOW = Tempo(heartbeat_seconds=600.0)  # Nothing is written by itself while a test runs.


async def delete(world: SessionWorld, name: str = "b-1") -> None:
    await world.store.delete(board_ref(name), now=SystemClock().now())


def test_a_deleted_board_is_cut_off_at_once_and_told_what_to_do(tmp_path: Path) -> None:
    """Also one that has nothing to report; others keep their streams."""

    async def scenario() -> None:
        async with (
            session_world(tmp_path, tempo=SLOW, loops=True) as world,
            running_board(await world.join("b-1")) as board,
            running_board(await world.join("b-2")) as other,
        ):
            await until(lambda: board.number == other.number == 1)
            clock = SystemClock()
            began = clock.monotonic()
            await delete(world)
            await until(lambda: board.reason.startswith("REVOKED"), CUT_OFF_SECONDS)
            took = clock.monotonic() - began
            assert took < CUT_OFF_SECONDS / 5, f"{took:.2f} s"
            assert "board b-1 was deleted and its key is revoked; it goes on serving its own network" in board.reason
            assert board.reason.endswith("rkfleet join-token create --name b-1")
            assert not world.hub.presence("b-1")[0]
            assert other.number == 1

    asyncio.run(scenario())


def test_the_certificate_of_a_deleted_board_does_not_come_back_and_a_board_that_joins_anew_does(tmp_path: Path) -> None:
    """Not after a restart of the controller, not by a renewal, not when the name is made again by hand or joined by another key."""

    async def scenario() -> None:
        options = {"loops": True}
        async with enrolling_world(tmp_path / "controller", **options) as world:
            identity = await join(tmp_path / "old" / "identity", world.enrolment())
            async with running_board(identity) as board:
                await until(lambda: board.number == 1)
                await delete(world.sessions)
                await until(lambda: board.reason.startswith("REVOKED"), CUT_OFF_SECONDS)
        async with enrolling_world(tmp_path / "controller", **options) as world:
            old = msgspec.structs.replace(identity, session_address=f"127.0.0.1:{world.sessions.port}", controller=world.url)
            facts = msgspec.json.decode((old.directory / "identity.json").read_bytes())
            (old.directory / "identity.json").write_bytes(msgspec.json.encode({**facts, "controller": world.url}))

            async def refused(reason: str) -> None:
                async with running_board(old) as board:
                    await until(lambda: board.reason.startswith(f"REVOKED: {reason}"))
                with pytest.raises(PermissionDenied, match=r"does not exist here|does not belong to this key"):
                    await asyncio.to_thread(renew, old.directory, Renewal(role="board", machine_id="machine-1"))

            await refused("board b-1 does not exist here (any more), so its key is revoked")
            await world.sessions.create_board("b-1", Binding())
            await refused("board b-1 was made by hand and is bound to no key; join again")
            fresh = await join(tmp_path / "new" / "identity", world.enrolment())
            async with running_board(fresh) as board:
                await until(lambda: board.number == 1)
                await refused("board b-1 joined anew with another key")
                assert board.number == 1

    asyncio.run(scenario())


def test_a_board_deleted_and_made_again_at_once_is_another_board(tmp_path: Path) -> None:
    """The stream of the first one ends although a Board of its name and key is there: what it was told is not this one's."""

    async def scenario() -> None:
        async with session_world(tmp_path, tempo=SLOW, loops=True) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as board:
                await until(lambda: board.number == 1)
                bound = (await world.board("b-1")).metadata.annotations["rkfleet.dev/key-sha256"]
                await delete(world)
                await world.create_board("b-1", Binding(bound, "machine-1"))
                await until(lambda: board.reason.startswith("REVOKED: board b-1 was deleted"), CUT_OFF_SECONDS)
            async with running_board(identity) as board:
                await until(lambda: board.number)

    asyncio.run(scenario())


def test_a_certificate_from_another_machine_is_a_condition_of_the_board_and_the_holder_keeps_its_stream(tmp_path: Path) -> None:
    """Whoever looks at the Board sees it, with the command for the case that it moved."""

    async def scenario() -> None:
        async with session_world(tmp_path, loops=True) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as holder:
                await until(lambda: holder.number == 1)
                copied = tmp_path / "copy" / "identity"
                shutil.copytree(identity.directory, copied)
                async with running_board(msgspec.structs.replace(identity, directory=copied), machine_id="machine-2") as thief:

                    async def shown() -> Condition | None:
                        return conditions.find((await world.board("b-1")).status.conditions, conditions.IDENTITY_CONFLICT)

                    found: Condition = await until(shown)
                    assert (found.status, found.reason) == ("True", conditions.OTHER_MACHINE)
                    assert conditions.advice(found.message) == (
                        "the certificate of board b-1 was used by another machine (machine-2) and refused",
                        f"kubectl annotate board b-1 {MACHINE_ANNOTATION}- (if the board moved there)",
                    )
                    await until(lambda: thief.reason.startswith("REVOKED"))
                assert holder.number == 1
                assert (await world.board("b-1")).status.session.number == 1

    asyncio.run(scenario())


def test_a_revoked_board_asks_ever_more_rarely_and_serves_on(tmp_path: Path) -> None:
    """A minute, then two, four, eight, and from then on every ten to fifteen; a session in between makes it a minute again."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            runner = RunningBoard(await world.join("b-1")).runner
            goodbye = Goodbye(reason=GoodbyeReason.REVOKED, message="deleted", reconnect_after_seconds=REVOKED_SECONDS)
            pauses = [runner._at_least(goodbye) for _ in range(12)]
            assert pauses[:4] == [60.0, 120.0, 240.0, 480.0]
            assert set(pauses[4:]) == {RECONNECT_AFTER_SECONDS_MAX}

    asyncio.run(scenario())


# ---- deciding ------------------------------------------------------------------------------------------------------------------


def test_who_holds_a_session_leaves_when_board_or_key_are_others() -> None:
    """The sentence says which, and what to do."""
    held = Held(uid="u-1", key_sha256="k-1")
    assert why_revoked("b", held, "u-1", "k-1") == ""
    assert "was deleted and its key is revoked" in why_revoked("b", held, None, "")
    assert "was deleted and made again" in why_revoked("b", held, "u-2", "k-1")
    assert "is bound to another key by now" in why_revoked("b", held, "u-1", "k-2")
    for uid, key in ((None, ""), ("u-2", "k-1"), ("u-1", "")):
        assert why_revoked("b", held, uid, key).endswith("rkfleet join-token create --name b")


def test_a_conflict_is_shown_for_twenty_minutes_after_the_last_attempt_also_over_a_restart() -> None:
    """It comes with the attempt, stays while there are more, and goes by itself; nothing is written when nothing is new."""
    name = {"name": "b", "uid": "u"}
    calm = msgspec.convert({"metadata": name}, Board)
    attempt = Attempt(reason=conditions.OTHER_MACHINE, message="the certificate was used", seconds=0.0)
    assert plan_conflict(calm, None, 0.0).actions == ()
    plan = plan_conflict(calm, attempt, 0.0)
    assert plan.again_after_seconds == CONFLICT_SECONDS
    (write,) = plan.actions
    assert write.conditions[0].status == "True"  # type: ignore[union-attr]

    shown = condition(conditions.IDENTITY_CONFLICT, "True", attempt.reason, attempt.message)
    board = msgspec.convert({"metadata": name, "status": {"conditions": [msgspec.to_builtins(shown)]}}, Board)
    assert plan_conflict(board, attempt, 0.0).actions == ()
    assert plan_conflict(board, None, 10.0) == plan_conflict(board, None, 10.0)
    assert plan_conflict(board, None, 10.0).again_after_seconds == CONFLICT_SECONDS - 10.0
    assert plan_conflict(board, None, 10.0).actions == ()
    for late in (plan_conflict(board, None, CONFLICT_SECONDS), plan_conflict(board, msgspec.structs.replace(attempt, seconds=1200.0), 0.0)):
        (write,) = late.actions
        assert write.conditions[0].reason == conditions.SOLE_HOLDER  # type: ignore[union-attr]
        assert late.again_after_seconds is None
