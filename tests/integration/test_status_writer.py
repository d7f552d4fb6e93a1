"""Reports become status on the real store: what is written, when, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controller.sessions.status_writer import MEASURED_SECONDS, PROGRESS_SECONDS, REASSERT_SECONDS, StatusWriter
from controller.sessions.taking import Taken
from controller.store.base import decode_item
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.conditions import condition
from rkfleet.errors import Conflict, NotFound
from rkfleet.kinds import KINDS
from rkfleet.kinds.board import Board
from rkfleet.kinds.replica import LastExit, Measured, Progress, Replica, ReplicaStatus
from rkfleet.meta import Ref
from rkfleet.report import BoardFacts, BoardState, ReplicaState
from rkfleet.session import AssignmentAnswer, Verdict
from tests.support.clocks import ManualClock

BOARD = Ref(Board.resource.name, "", "b-1")
REPLICA = Ref(Replica.resource.name, "default", "m-0")
FACTS = BoardFacts(soc="rk3588", npu_cores=3, memory_bytes=16 << 30, allocatable_memory_bytes=15 << 30)
READY = condition("Ready", "True", "Serving", "", 1)
SERVING = ReplicaState(namespace="default", name="m-0", uid="r", observed_generation=1, conditions=(READY,))


@dataclass
class Desk:
    """A store with one Board in session 1 and one Replica on it, and the writer of that session."""

    store: SqlStore
    clock: ManualClock
    writer: StatusWriter
    writes: list[str]

    async def board(self) -> Board:
        return decode_item(Board, await self.store.get(BOARD))

    async def replica(self) -> ReplicaStatus:
        return decode_item(Replica, await self.store.get(REPLICA)).status

    async def report(self, *replicas: ReplicaState, facts: BoardFacts = FACTS, conditions: tuple[Any, ...] = ()) -> None:
        await self.writer.write(BoardState(assignment_number=1, facts=facts, conditions=conditions, replicas=replicas))

    async def patch_board(self, status: dict[str, Any]) -> None:
        await self.store.patch(BOARD, {"status": status}, subresource="status", now=self.clock.now())


@contextlib.asynccontextmanager
async def desk(directory: Path) -> AsyncIterator[Desk]:
    clock, writes = ManualClock(), list[str]()
    async with SqlStore.open(directory / "store.db", KINDS) as store:
        for ref, uid, kind, spec in (
            (BOARD, "b", Board, {}),
            (REPLICA, "r", Replica, {"deploymentName": "m", "revisionName": "m-1", "slot": "0", "boardName": "b-1"}),
        ):
            metadata = {"name": ref.name, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"} | (
                {"namespace": ref.namespace} if ref.namespace else {}
            )
            await store.create(
                ref, {"apiVersion": kind.resource.api_version, "kind": kind.resource.kind, "metadata": metadata, "spec": spec}
            )
        writer = StatusWriter(store, clock, Taken("b-1", "b", 1), writes.append)
        made = Desk(store, clock, writer, writes)
        await made.patch_board({"session": {"controller": "c", "number": 1}, "assignment": {"number": 7, "sha256": "x"}})
        yield made


def test_a_whole_state_is_written_once_and_again_when_something_changes(tmp_path: Path) -> None:
    """Board and Replica are written with the first report; the same state writes nothing."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            pressure = condition("MemoryPressure", "False", "Sufficient")
            await it.report(SERVING, conditions=(pressure, condition("Ready", "True", "SessionOpen")))
            found = (await it.board()).status
            assert (found.soc, found.capacity.memory, found.capacity.npu_cores, found.allocatable.memory) == ("rk3588", "16Gi", 3, "15Gi")
            assert [one.type for one in found.conditions] == ["MemoryPressure"], "Ready is health's, not the agent's"
            assert (await it.board()).metadata.labels == {"rkfleet.dev/soc": "rk3588", "rkfleet.dev/simulated": "false"}
            assert (await it.replica()).conditions[0].reason == "Serving"
            assert sorted(it.writes) == ["Board", "Board", "Replica"], "labels, status, replica"

            it.writes.clear()
            await it.report(SERVING, conditions=(pressure,))
            assert it.writes == []
            exited = msgspec.structs.replace(SERVING, restarts=1, last_exit=LastExit(reason="Crashed", message="signal 11"))
            await it.report(exited, conditions=(pressure,))
            assert it.writes == ["Replica"]
            assert (await it.replica()).last_exit == LastExit(reason="Crashed", message="signal 11")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("first", "second", "pause"),
    [
        ({"measured": Measured(decode_tokens_per_second=16.0)}, {"measured": Measured(decode_tokens_per_second=17.0)}, MEASURED_SECONDS),
        ({"progress": Progress(total_bytes=9)}, {"progress": Progress(fetched_bytes=5, total_bytes=9)}, PROGRESS_SECONDS),
    ],
)
def test_speed_alone_and_progress_alone_wait_for_their_pause(tmp_path: Path, first: Any, second: Any, pause: float) -> None:
    """They are written when the pause is over, or together with a transition."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            before, after = msgspec.structs.replace(SERVING, **first), msgspec.structs.replace(SERVING, **second)
            await it.report(before)
            it.writes.clear()
            it.clock.advance(pause - 1)
            await it.report(after)
            assert it.writes == []
            it.clock.advance(1)
            await it.report(after)
            assert "Replica" in it.writes
            it.writes.clear()
            await it.report(msgspec.structs.replace(before, observed_generation=2))
            assert it.writes == ["Replica"]

    asyncio.run(scenario())


def test_figures_that_round_to_the_same_two_digits_are_no_change(tmp_path: Path) -> None:
    """Noise is not written, whatever time has passed."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            for figure in (16.44, 15.61):
                it.clock.advance(REASSERT_SECONDS / 2 - 1)
                await it.report(msgspec.structs.replace(SERVING, measured=Measured(decode_tokens_per_second=figure)))
            assert (await it.replica()).measured == Measured(decode_tokens_per_second=16.0)
            assert it.writes.count("Replica") == 1

    asyncio.run(scenario())


def test_what_another_writer_did_from_a_stale_view_is_mended_within_a_minute(tmp_path: Path) -> None:
    """Everything is asserted again; where nothing is wrong that costs no commit."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.report(SERVING)
            stale = {"type": "Ready", "status": "Unknown", "reason": "AwaitingReconnect", "message": ""}
            await it.store.patch_status(REPLICA, "r", "agent", {}, [stale], now=it.clock.now())
            it.clock.advance(REASSERT_SECONDS - 1)
            await it.report(SERVING)
            assert (await it.replica()).conditions[0].status == "Unknown"
            it.clock.advance(1)
            await it.report(SERVING)
            assert (await it.replica()).conditions[0].status == "True"
            commits = it.store.commits
            it.clock.advance(REASSERT_SECONDS)
            await it.report(SERVING)
            assert it.store.commits == commits

    asyncio.run(scenario())


def test_a_session_that_was_taken_over_writes_nothing_more_about_its_board(tmp_path: Path) -> None:
    """Every write about the Board is conditional on the session number."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.patch_board({"session": {"controller": "c", "number": 2}})
            with pytest.raises(Conflict):
                await it.report(SERVING)
            with pytest.raises(Conflict, match="session 1 of board b-1 was superseded by 2"):
                await it.writer.write_answer(AssignmentAnswer(number=7, verdict=Verdict.ACCEPTED))
            status = (await it.board()).status
            assert (status.soc, status.assignment.accepted_number) == ("", 0)
            assert (await it.replica()).conditions == ()

    asyncio.run(scenario())


def test_a_namesake_made_later_is_not_the_replica_that_was_reported(tmp_path: Path) -> None:
    """A report is about a uid; a deleted Replica costs no error either."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.report(msgspec.structs.replace(SERVING, uid="older"), msgspec.structs.replace(SERVING, name="gone", uid="g"))
            assert (await it.replica()).conditions == ()

    asyncio.run(scenario())


def test_a_board_that_is_gone_is_not_found(tmp_path: Path) -> None:
    """The hub ends the session of a deleted Board by this."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.store.delete(BOARD, now=SystemClock().now())
            with pytest.raises(NotFound):
                await it.report(SERVING)

    asyncio.run(scenario())


def test_an_answer_is_recorded_unless_a_newer_assignment_was_minted(tmp_path: Path) -> None:
    """Acceptance clears the refusal before it; number and hash are the minter's and stay."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.writer.write_answer(AssignmentAnswer(number=7, verdict=Verdict.DISK, reason="No space left on device"))
            refused = (await it.board()).status.assignment
            assert (refused.accepted_number, refused.message) == (0, "assignment 7 DISK: No space left on device")
            await it.writer.write_answer(AssignmentAnswer(number=7, verdict=Verdict.ACCEPTED))
            accepted = (await it.board()).status.assignment
            assert (accepted.number, accepted.sha256, accepted.accepted_number, accepted.message) == (7, "x", 7, "")
            await it.patch_board({"assignment": {"number": 8}})
            await it.writer.write_answer(AssignmentAnswer(number=7, verdict=Verdict.INVALID, reason="late"))
            assert (await it.board()).status.assignment.message == ""

    asyncio.run(scenario())


def test_a_superseded_session_writes_no_replica_although_it_has_nothing_new_to_say_of_its_board(tmp_path: Path) -> None:
    """A Replica cannot be fenced by the Board's session number in one write, so the number is looked at before."""

    async def scenario() -> None:
        async with desk(tmp_path) as it:
            await it.report(SERVING)
            await it.patch_board({"session": {"controller": "c", "number": 2}})
            it.writes.clear()
            stale = msgspec.structs.replace(SERVING, conditions=(condition("Ready", "False", "Loading", "", 1),))
            with pytest.raises(Conflict):
                await it.report(stale)
            assert (await it.replica()).conditions[0].reason == "Serving"
            assert it.writes == []

    asyncio.run(scenario())
