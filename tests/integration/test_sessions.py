"""Sessions over real gRPC with mutual TLS, on the real store."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest

from controller.trust.binding import MACHINE_ANNOTATION, Binding
from rkfleet import metric_names
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment
from rkfleet.clock import SystemClock, parse_time
from rkfleet.conditions import condition
from rkfleet.errors import PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.kinds.event import Event
from rkfleet.kinds.replica import Measured, Progress, Replica
from rkfleet.meta import LABEL_SIMULATED, LABEL_SOC
from rkfleet.report import BoardFacts, BoardState, ReplicaState, RunningWorker
from rkfleet.session import Hello, Report
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.v1 import agent_pb2_grpc
from rkfleet.wire import encode_board_message
from tests.support.disk import LimitedDisk
from tests.support.faulty_store import FaultyStore
from tests.support.sessions import (
    FACTS,
    RunningBoard,
    SessionWorld,
    board_ref,
    make_key,
    running_board,
    session_world,
    until,
)
from tests.support.tcp_proxy import tcp_proxy


def one_replica(uid: str, *, name: str = "m-0", tokens: int = 1024) -> Assignment:
    replica = AssignedReplica(
        namespace="default", name=name, uid=uid, generation=1, model="m", served_model_name="m", variant="any", soc="any", dtype="q4",
        runtime="llamacpp", files=(AssignedFile(path="m.gguf", digest="sha256:" + "1" * 64, size_bytes=1),), memory_bytes=tokens,
    )  # fmt: skip
    return Assignment(replicas=(replica,))


def state_of(board: RunningBoard, *replicas: ReplicaState, facts: BoardFacts = FACTS) -> BoardState:
    return BoardState(
        assignment_number=board.ledger.held.number, facts=facts, serving_url="https://127.0.0.1:7490", replicas=replicas,
        running=tuple(RunningWorker(namespace=one.namespace, name=one.name, uid=one.uid, memory_bytes=1 << 20) for one in replicas),
    )  # fmt: skip


def serving(uid: str, **fields: Any) -> ReplicaState:
    ready = condition("Ready", "True", "Serving", "", 1)
    return ReplicaState(namespace="default", name="m-0", uid=uid, observed_generation=1, conditions=(ready,), **fields)


def ends(world: SessionWorld, reason: str) -> float:
    return float(world.metrics.counter(metric_names.SESSION_ENDS, reason=reason)._value.get())


# ---- taking a session ----------------------------------------------------------------------------------------------------------


def test_a_board_takes_its_session_and_its_facts_become_status_and_labels(tmp_path: Path) -> None:
    """Board status and labels say what the board reported, under the session's number."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            await until(lambda: board.number)

            async def reported() -> bool:
                status = (await world.board("b-1")).status
                return status.soc == "cpu" and status.assignment.accepted_number == 1

            await until(reported)
            found = await world.board("b-1")
            assert (found.status.session.controller, found.status.session.number) == ("c-0", 1)
            assert found.status.allocatable.memory == "1Gi"
            assert found.status.serving_endpoint == "https://127.0.0.1:7490"
            assert (found.metadata.labels[LABEL_SOC], found.metadata.labels[LABEL_SIMULATED]) == ("cpu", "false")
            assert world.hub.presence("b-1")[0]
            assert board.ledger.held.number == 1

    asyncio.run(scenario())


def test_a_second_stream_of_a_board_closes_the_first_with_superseded_within_a_second(tmp_path: Path) -> None:
    """The newest stream holds the session; the one before is told at once."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as first:
                await until(lambda: first.number == 1)
                async with running_board(identity) as second:
                    await until(lambda: second.number == 2)
                    await until(lambda: first.reason.startswith("SUPERSEDED"), seconds=1.0)
                    assert world.hub.presence("b-1")[0]
                    await until(lambda: ends(world, "SUPERSEDED") == 1, seconds=1.0)

    asyncio.run(scenario())


def test_a_half_open_stream_is_superseded_within_a_second_too(tmp_path: Path) -> None:
    """A connection that takes nothing any more keeps neither the session nor its task."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, tcp_proxy(world.port) as proxy:
            identity = await world.join("b-1")
            through_proxy = msgspec.structs.replace(identity, session_address=f"127.0.0.1:{proxy.port}")
            async with running_board(through_proxy) as first:
                await until(lambda: first.number == 1)
                proxy.freeze()
                async with running_board(identity) as second:
                    await until(lambda: second.number == 2)
                    await until(lambda: ends(world, "SUPERSEDED") == 1, seconds=1.0)
                    assert (await world.board("b-1")).status.session.number == 2

    asyncio.run(scenario())


def test_a_restored_older_database_does_not_make_boards_refuse(tmp_path: Path) -> None:
    """After a restore the controller numbers above what the board holds, and the board follows it."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1")
        shutil.copytree(tmp_path, tmp_path.with_name("backup"), ignore=shutil.ignore_patterns("b-1-*"))
        async with session_world(tmp_path) as world:
            address = f"127.0.0.1:{world.port}"
            async with running_board(msgspec.structs.replace(identity, session_address=address)) as board:
                for number in (2, 3, 4):
                    await until(lambda: board.number)
                    await world.want("b-1", one_replica("uid", tokens=number))
                await until(lambda: board.ledger.held.number == 4)
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
            if (tmp_path.with_name("backup") / name).exists():
                shutil.copy(tmp_path.with_name("backup") / name, tmp_path / name)
        async with session_world(tmp_path, planning=True) as world:
            assert (await world.board("b-1")).status.assignment.number == 0
            address = f"127.0.0.1:{world.port}"
            async with running_board(msgspec.structs.replace(identity, session_address=address)) as board:
                assert board.ledger.held.number == 4
                await until(lambda: board.ledger.held.number == 5)
                assert board.ledger.held.assignment == Assignment()

                async def accepted() -> bool:
                    return (await world.board("b-1")).status.assignment.accepted_number == 5

                await until(accepted)
                assert "the board holds assignment 4" in (await until(lambda: world.events("AssignmentRewound")))[0].message

    asyncio.run(scenario())


def test_a_board_comes_again_after_the_controller_was_restarted(tmp_path: Path) -> None:
    """A stopping controller says so; the same runner is in session with its successor."""

    async def scenario() -> None:
        async with AsyncExitStack() as board_life:
            async with session_world(tmp_path) as world:
                port = world.port
                board = await board_life.enter_async_context(running_board(await world.join("b-1")))
                await until(lambda: board.number == 1)
            await until(lambda: "SHUTDOWN: the controller is stopping" in board.reasons)
            async with session_world(tmp_path, port=port) as world:
                await until(lambda: board.number == 2)
                await board_life.aclose()
                await until(lambda: not world.hub.presence("b-1")[0])
                assert ends(world, "SHUTDOWN") == 1

    asyncio.run(scenario())


# ---- who may not be here -------------------------------------------------------------------------------------------------------


def test_another_machine_with_a_copied_certificate_is_refused_and_shown_and_the_holder_keeps_its_stream(tmp_path: Path) -> None:
    """A stolen identity directory does not work elsewhere, and the operator sees the attempt."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1", machine_id="machine-1")
            async with running_board(identity, machine_id="machine-1") as holder:
                await until(lambda: holder.number == 1)
                copied = tmp_path / "copy" / "identity"
                shutil.copytree(identity.directory, copied)
                async with running_board(msgspec.structs.replace(identity, directory=copied), machine_id="machine-2") as thief:
                    await until(lambda: thief.reason.startswith("REVOKED"))
                    assert "used by another machine (machine-2)" in thief.reason
                    event = (await until(lambda: world.events("IdentityConflict")))[0]
                    assert event.involved_object.name == "b-1"
                    assert "machine-2" in event.message
                assert holder.number == 1
                assert world.hub.presence("b-1")[0]
                assert ends(world, "SUPERSEDED") == 0

    asyncio.run(scenario())


def test_a_machine_is_bound_by_its_first_session_when_the_binding_was_removed(tmp_path: Path) -> None:
    """An operator who moved a card to another machine removes one annotation."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1", machine_id="machine-1")
            patch = {"metadata": {"annotations": {MACHINE_ANNOTATION: None}}}
            await world.store.patch(board_ref("b-1"), patch, now=SystemClock().now())
            async with running_board(identity, machine_id="machine-2") as board:
                await until(lambda: board.number == 1)
            found = await world.board("b-1")
            assert found.metadata.annotations[MACHINE_ANNOTATION] == "machine-2"

    asyncio.run(scenario())


def test_a_board_that_does_not_exist_or_joined_anew_with_another_key_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Deleting a Board ends its certificate, also after the name was taken again."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            async with running_board(await world.join("b-1", create=False)) as unknown:
                await until(lambda: unknown.reason.startswith("REVOKED: board b-1 does not exist here"))
            old = await world.join("b-2", create=False)
            await world.create_board("b-2", Binding(make_key()[1].sha256, ""))
            async with running_board(old) as revoked:
                await until(lambda: revoked.reason.startswith("REVOKED: board b-2 joined anew with another key"))

    asyncio.run(scenario())


def test_a_deleted_board_loses_its_stream_with_its_next_report(tmp_path: Path) -> None:
    """What cannot be written about a Board that is gone ends the session."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            await until(lambda: board.number)
            await until(lambda: board.ledger.held.number)
            await world.store.delete(board_ref("b-1"), now=SystemClock().now())
            board.reports.publish(state_of(board, facts=msgspec.structs.replace(FACTS, memory_bytes=1)))
            await until(lambda: board.reason.startswith("REVOKED"))

    asyncio.run(scenario())


def test_a_certificate_of_another_class_or_of_another_fleet_does_not_get_through_the_handshake(tmp_path: Path) -> None:
    """Each port trusts exactly one CA, so TLS itself tells a gateway from a board."""

    async def scenario() -> None:
        async with session_world(tmp_path / "one") as world, session_world(tmp_path / "two") as other:
            private, public = make_key()
            gateway = world.write_identity("gw", private, public)
            gateway.cert_file.write_text(world.pki.issue_gateway("gw", public, SystemClock().now()))
            stranger = await other.join("b-1")
            stranger.ca_file.write_text(world.pki.ca_pem("servers"))
            for identity in (gateway, msgspec.structs.replace(stranger, session_address=f"127.0.0.1:{world.port}")):
                async with running_board(identity) as board:
                    await until(lambda board=board: "session with" in board.reason)
                    assert "UNAVAILABLE" in board.reason
            assert world.presence == []

    asyncio.run(scenario())


def test_a_board_does_not_talk_to_a_controller_of_another_ca(tmp_path: Path) -> None:
    """The agent verifies the controller's name under the CA of its enrolment."""

    async def scenario() -> None:
        async with session_world(tmp_path / "one") as world, session_world(tmp_path / "two") as other:
            identity = await world.join("b-1")
            async with running_board(msgspec.structs.replace(identity, session_address=f"127.0.0.1:{other.port}")) as board:
                await until(lambda: "session with" in board.reason)
                assert "CERTIFICATE_VERIFY_FAILED" in board.reason.upper().replace(" ", "_")

    asyncio.run(scenario())


# ---- reports -------------------------------------------------------------------------------------------------------------------


def test_a_report_becomes_replica_status_with_speeds_of_two_digits(tmp_path: Path) -> None:
    """Conditions, endpoint and rounded figures of this board's replica are in its status."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            uid = await world.create_replica("m-0", "b-1")
            measured = Measured(time_to_first_token_seconds=0.21377, decode_tokens_per_second=16.44)
            board.reports.publish(state_of(board, serving(uid, endpoint="https://x/replicas/default/m-0", measured=measured)))

            async def ready() -> bool:
                return bool((await world.replica("m-0")).status.conditions)

            await until(ready)
            status = (await world.replica("m-0")).status
            assert (status.endpoint, status.observed_generation) == ("https://x/replicas/default/m-0", 1)
            assert status.measured == Measured(time_to_first_token_seconds=0.21, decode_tokens_per_second=16.0)
            assert (status.conditions[0].type, status.conditions[0].status) == ("Ready", "True")
            assert (await world.board("b-1")).status.running[0].replica == "default/m-0"

    asyncio.run(scenario())


def test_a_board_cannot_report_about_the_replica_of_another(tmp_path: Path) -> None:
    """A board's certificate is good for its own replicas only; its own report still counts."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            foreign = await world.create_replica("m-0", "b-2")
            board.reports.publish(state_of(board, serving(foreign), facts=msgspec.structs.replace(FACTS, memory_bytes=1 << 20)))

            async def reported() -> bool:
                return (await world.board("b-1")).status.capacity.memory == "1Mi"

            await until(reported)
            assert (await world.replica("m-0")).status.conditions == ()

    asyncio.run(scenario())


def test_heartbeats_and_noise_cost_no_write(tmp_path: Path) -> None:
    """While nothing but measured speed and progress moves, the store is not written to."""

    async def scenario() -> None:
        async with session_world(tmp_path, wrap=FaultyStore) as world, running_board(await world.join("b-1")) as board:
            uid = await world.create_replica("m-0", "b-1")
            first = Measured(time_to_first_token_seconds=0.1)
            board.reports.publish(state_of(board, serving(uid, progress=Progress(fetched_bytes=1, total_bytes=100), measured=first)))
            store: Any = world.store

            async def settled() -> bool:
                reported = [ref for method, ref in store.written if method == "patch_status" and ref.resource == Replica.resource.name]
                status = (await world.board("b-1")).status
                return len(reported) == 1 and status.assignment.accepted_number == 1 and bool(status.running)

            await until(settled)
            written = len(store.written)
            received = world.metrics.counter(metric_names.SESSION_MESSAGES, direction="received", message="report")
            heard = received._value.get()
            for fetched in range(2, 8):
                measured = Measured(time_to_first_token_seconds=fetched / 10)
                board.reports.publish(
                    state_of(board, serving(uid, progress=Progress(fetched_bytes=fetched, total_bytes=100), measured=measured))
                )
                await until(lambda heard=heard, fetched=fetched: received._value.get() >= heard + fetched - 1)
            assert store.written[written:] == []

    asyncio.run(scenario())


def test_a_status_that_could_not_be_stored_is_stored_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """Unavailable ends no session and loses no state: the latest is written later."""

    async def scenario() -> None:
        async with session_world(tmp_path, wrap=FaultyStore) as world, running_board(await world.join("b-1")) as board:
            await until(lambda: board.ledger.held.number)
            store: Any = world.store
            store.fails = lambda method, ref: method == "patch_status" and ref.resource == Board.resource.name
            for size in (1, 2, 3):
                board.reports.publish(state_of(board, facts=msgspec.structs.replace(FACTS, memory_bytes=size)))
            await until(lambda: store.refused)
            store.fails = lambda method, ref: False

            async def caught_up() -> bool:
                return (await world.board("b-1")).status.capacity.memory == "3"

            await until(caught_up)
            assert board.number == 1

    asyncio.run(scenario())


def test_log_entries_become_events_once_and_are_acknowledged_after_they_are_stored(tmp_path: Path) -> None:
    """While the store refuses, the agent keeps its log; afterwards there is one Event for each entry, and the log is empty."""

    async def scenario() -> None:
        async with session_world(tmp_path, wrap=FaultyStore) as world:
            identity = await world.join("b-1")
            uid = await world.create_replica("m-0", "b-1")
            store: Any = world.store
            store.fails = lambda method, ref: ref.resource == Event.resource.name
            async with running_board(identity) as board:
                board.reports.record(
                    "Warning", "WorkerExited", "worker of m-0 ended: OutOfMemory", namespace="default", name="m-0", uid=uid
                )
                board.reports.record("Normal", "Started", "agent 0.1.0 started")
                await until(lambda: store.refused)
                assert len(board.reports.log()) == 2
                store.fails = lambda method, ref: False
                await until(lambda: not board.reports.log())
            about_replica, about_board = await world.events("WorkerExited"), await world.events("Started")
            assert [event.involved_object.name for event in (*about_replica, *about_board)] == ["m-0", "b-1"]
            assert (about_replica[0].metadata.namespace, about_board[0].metadata.namespace) == ("default", "default")
            assert about_board[0].source.host == "b-1"

    asyncio.run(scenario())


def test_an_entry_that_comes_again_makes_no_second_event(tmp_path: Path) -> None:
    """The acknowledgement may be lost; the Event is found by its name."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as board:
                board.reports.record("Normal", "Started", "agent 0.1.0 started")
                entry = board.reports.recorded[0]
                await until(lambda: not board.reports.log())
            async with running_board(identity) as again:
                again.reports.restore((entry,))
                again.reports.record("Normal", "Second", "something else")
                await until(lambda: not again.reports.log())
            assert len(await world.events("Started")) == 1
            assert len(await world.events("Second")) == 1

    asyncio.run(scenario())


def test_lost_log_entries_and_a_reboot_are_shown(tmp_path: Path) -> None:
    """The drop counter and the boot id become Events."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as board:
                await until(lambda: board.number)
            async with running_board(identity, boot_id="boot-2") as board:
                for number in range(300):
                    board.reports.record("Normal", "Tick", f"tick {number}")
                lost = (await until(lambda: world.events("LogEntriesDropped")))[0]
                assert lost.message.startswith("44 log entries of board b-1")
                assert (await until(lambda: world.events("Rebooted")))[0].message == "board b-1 was rebooted, boot id boot-2"

    asyncio.run(scenario())


def test_a_machine_whose_clock_jumps_keeps_its_session_and_its_events_have_a_time_that_can_be_right(tmp_path: Path) -> None:
    """Durations are monotonic; the time of an entry is counted back from the controller's clock."""

    class JumpingClock(SystemClock):
        years = 0

        def now(self) -> datetime:
            return super().now() + timedelta(days=365 * self.years)

    async def scenario() -> None:
        clock = JumpingClock()
        async with session_world(tmp_path) as world, running_board(await world.join("b-1"), clock=clock) as board:
            await until(lambda: board.number == 1)
            for clock.years in (-56, 10):
                board.reports.record("Normal", "Jumped", f"the clock jumped {clock.years} years")
                await until(lambda: not board.reports.log())
            for event in await world.events("Jumped"):
                assert abs(parse_time(event.last_timestamp) - SystemClock().now()) < timedelta(minutes=1)
            assert board.number == 1

    asyncio.run(scenario())


# ---- assignments and grants ----------------------------------------------------------------------------------------------------


def test_a_new_assignment_reaches_the_board_and_its_acceptance_is_recorded(tmp_path: Path) -> None:
    """Of assignments that change faster than the board answers, the newest counts."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            await until(lambda: board.ledger.held.number == 1)
            for tokens in range(10):
                await world.want("b-1", one_replica("uid", tokens=tokens))
            await until(lambda: board.ledger.held.number == 11)

            async def accepted() -> bool:
                return (await world.board("b-1")).status.assignment.accepted_number == 11

            await until(accepted)
            assert (await world.hub.assignment_of("b-1")) == one_replica("uid", tokens=9)
            assert await world.hub.assignment_of("b-2") is None

    asyncio.run(scenario())


def test_a_board_with_a_full_disk_says_so_and_is_offered_the_assignment_again(tmp_path: Path) -> None:
    """The refusal stands in the Board's status until the board could write."""

    async def scenario() -> None:
        disk = LimitedDisk()
        disk.room = 0
        async with session_world(tmp_path) as world, running_board(await world.join("b-1"), disk=disk) as board:

            async def assignment() -> Any:
                return (await world.board("b-1")).status.assignment

            await until(lambda: board.number)

            async def refused() -> bool:
                return "DISK" in (await assignment()).message

            await until(refused)
            disk.room = None

            async def accepted() -> bool:
                return (await assignment()).accepted_number == 1 and not (await assignment()).message

            await until(accepted)

    asyncio.run(scenario())


def test_grants_are_given_on_demand_and_refused_with_a_reason(tmp_path: Path) -> None:
    """A grant has sources and a token; what the board may not have is PermissionDenied."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, running_board(await world.join("b-1")) as board:
            grants = await asyncio.gather(*(board.runner.request_grant((f"sha256:{number:064x}",)) for number in range(1, 40)))
            assert {grant.token for grant in grants} == {"t"}
            assert grants[0].sources == ("https://registry.test/v2/default/m",)
            with pytest.raises(PermissionDenied, match="belongs to no replica"):
                await board.runner.request_grant(("sha256:" + "0" * 64,))

    asyncio.run(scenario())


# ---- peers that misbehave ------------------------------------------------------------------------------------------------------


class RawBoard:
    """A board that sends what a test wants, over the product's certificate."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity

    async def __aenter__(self) -> Any:
        credentials = grpc.ssl_channel_credentials(
            self.identity.ca_file.read_bytes(), self.identity.key_file.read_bytes(), self.identity.cert_file.read_bytes()
        )
        options = [("grpc.ssl_target_name_override", f"controller.{self.identity.fleet_id}")]
        self.channel = grpc.aio.secure_channel(self.identity.session_address, credentials, options=options)
        return agent_pb2_grpc.AgentServiceStub(self.channel).Session()  # type: ignore[no-untyped-call]

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()


async def goodbye_of(call: Any) -> pb.Goodbye:
    async with asyncio.timeout(5):
        while True:
            message = await call.read()
            assert message is not grpc.aio.EOF
            if message.WhichOneof("message") == "goodbye":
                return message.goodbye


def hello(world: SessionWorld) -> pb.SessionRequest:
    return encode_board_message(
        Hello(
            protocol=1,
            fleet_id=world.pki.fleet_id,
            machine_id="machine-1",
            boot_id="b",
            assignment_number=0,
            assignment_sha256="",
            facts=FACTS,
        )
    )


def test_a_board_that_breaks_the_protocol_is_told_how(tmp_path: Path) -> None:
    """Goodbye PROTOCOL names what was wrong."""
    report = encode_board_message(Report(state=BoardState(assignment_number=0, facts=FACTS)))
    wrong = {
        "may not send Report in state OPENING": [report],
        "of a kind that this controller does not know": [pb.SessionRequest()],
        "speaks session protocol 9": [pb.SessionRequest(hello=pb.Hello(protocol=9))],
        "the board may not send AssignmentAnswer in state TAKEN": [
            None, pb.SessionRequest(assignment_answer=pb.AssignmentAnswer(number=1, verdict="VERDICT_ACCEPTED")),
            pb.SessionRequest(assignment_answer=pb.AssignmentAnswer(number=1, verdict="VERDICT_ACCEPTED")),
        ],
        "is not sha256": [None, pb.SessionRequest(grant_request=pb.GrantRequest(request_id=1, digests=["../../etc/passwd"]))],
    }  # fmt: skip

    async def scenario() -> None:
        async with session_world(tmp_path) as world:
            identity = await world.join("b-1")
            for expected, messages in wrong.items():
                async with RawBoard(identity) as call:
                    for message in messages:
                        if message is None:
                            await call.write(hello(world))
                            while (await call.read()).WhichOneof("message") != "assignment_offer":
                                pass
                        else:
                            await call.write(message)
                    goodbye = await goodbye_of(call)
                    assert expected in goodbye.message
                    assert goodbye.reason == pb.Goodbye.REASON_PROTOCOL
            await until(lambda: not world.hub.presence("b-1")[0])

    asyncio.run(scenario())


def test_a_board_that_goes_silent_loses_its_session_after_three_heartbeats(tmp_path: Path) -> None:
    """Heartbeats are reports; a board that is connected and says nothing is away."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, RawBoard(await world.join("b-1")) as call:
            await call.write(hello(world))
            await until(lambda: world.hub.presence("b-1")[0])
            assert "reported nothing" in (await goodbye_of(call)).message
            await until(lambda: not world.hub.presence("b-1")[0])

    asyncio.run(scenario())


def test_a_wrong_fleet_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """A ledger of another fleet must not meet this fleet's assignments."""

    async def scenario() -> None:
        async with session_world(tmp_path) as world, RawBoard(await world.join("b-1")) as call:
            message = hello(world)
            message.hello.fleet_id = "other"
            await call.write(message)
            goodbye = await goodbye_of(call)
            assert goodbye.message.startswith("the board's ledger is of fleet other, this controller serves test-fleet")
            assert goodbye.reason == pb.Goodbye.REASON_REVOKED

    asyncio.run(scenario())
