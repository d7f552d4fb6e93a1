"""The agent's end of a session against controllers that misbehave, over real gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.trust.pki import Pki
from rkfleet.clock import SystemClock
from rkfleet.errors import Unavailable
from rkfleet.identity import Identity
from rkfleet.session import AssignmentAnswer, Goodbye, GoodbyeReason, Grant, Hello, Report
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.v1 import agent_pb2_grpc
from rkfleet.wire import decode_board_message
from tests.support.sessions import make_key, running_board, session_world, until

Script = Callable[[Any], Awaitable[None]]
WELCOME = pb.SessionResponse(
    welcome=pb.Welcome(fleet_id="f-1", session_number=1, heartbeat_milliseconds=500, report_interval_min_milliseconds=10)
)


@contextlib.asynccontextmanager
async def scripted_controller(directory: Path, script: Script) -> AsyncIterator[Identity]:
    """Serve sessions by a script; what is given is the identity of a board that joined there."""
    pki = Pki.ensure(directory / "pki", ["127.0.0.1"], SystemClock().now(), "f-1")
    server = grpc.aio.server()

    class Servicer(agent_pb2_grpc.AgentServiceServicer):
        async def Session(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
            await script(context)

    agent_pb2_grpc.add_AgentServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
    certificate, key = pki.server_files("controller")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], pki.ca_pem("boards").encode(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    identity_dir = directory / "board" / "identity"
    identity_dir.mkdir(parents=True)
    private, public = make_key()
    (identity_dir / "key.pem").write_bytes(private)
    (identity_dir / "cert.pem").write_text(pki.issue_board("b-1", public, SystemClock().now()).client)
    (identity_dir / "ca.pem").write_text(pki.ca_pem("servers"))
    try:
        yield Identity(
            fleet_id="f-1", name="b-1", controller="https://127.0.0.1:1", directory=identity_dir, session_address=f"127.0.0.1:{port}"
        )
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([pb.SessionResponse(welcome=pb.Welcome(fleet_id="other"))], "the controller is of fleet other, this board joined f-1"),
        ([pb.SessionResponse(welcome=pb.Welcome(fleet_id="f-1", heartbeat_milliseconds=1))], "heartbeat every 0.001 s, must be 0.1..600.0"),
        ([pb.SessionResponse()], "of a kind that this agent does not know"),
        ([pb.SessionResponse(assignment_offer=pb.AssignmentOffer(number=1))], "may not send AssignmentOffer in state GREETED"),
        ([WELCOME, pb.SessionResponse(report_ack=pb.ReportAck(log_sequence=9))], "acknowledged log sequence 9, sent were 0"),
    ],
)
def test_a_controller_that_breaks_the_protocol_is_told_how_and_left(tmp_path: Path, answers: list[Any], reason: str) -> None:
    """The board says Goodbye PROTOCOL and comes again later; its ledger is untouched."""
    heard: list[Any] = []

    async def script(context: Any) -> None:
        heard.append(decode_board_message(await context.read()))
        for answer in answers:
            await context.write(answer)
        while (message := await context.read()) is not grpc.aio.EOF:
            heard.append(decode_board_message(message))

    async def scenario() -> None:
        async with scripted_controller(tmp_path, script) as identity, running_board(identity) as board:
            await until(lambda: reason in board.reason)
            assert board.reason.startswith("PROTOCOL: ")
            assert board.ledger.held.number == 0
            assert isinstance(heard[0], Hello)
            assert heard[-1].reason is GoodbyeReason.PROTOCOL

    asyncio.run(scenario())


def test_a_controller_that_vanishes_is_come_back_to(tmp_path: Path) -> None:
    """A stream that ends without a Goodbye is a broken one: the next attempt comes by itself."""
    opened: list[Hello] = []

    async def script(context: Any) -> None:
        message = decode_board_message(await context.read())
        assert isinstance(message, Hello)
        opened.append(message)
        if len(opened) == 1:
            await context.abort(grpc.StatusCode.INTERNAL, "bang")
        await context.write(WELCOME)
        while await context.read() is not grpc.aio.EOF:
            pass

    async def scenario() -> None:
        async with scripted_controller(tmp_path, script) as identity, running_board(identity) as board:
            await until(lambda: board.reason.endswith("INTERNAL: bang"))
            await until(lambda: board.number == 1)

    asyncio.run(scenario())


def test_an_error_of_the_agent_itself_ends_the_session_and_not_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part of the pump that fails takes the others with it: the next session comes by itself, and the log has the cause."""
    opened: list[Hello] = []

    async def script(context: Any) -> None:
        message = decode_board_message(await context.read())
        assert isinstance(message, Hello)
        opened.append(message)
        await context.write(WELCOME)
        if len(opened) == 1:
            await context.write(pb.SessionResponse(assignment_offer=pb.AssignmentOffer(number=1, body=b"{}", sha256="0" * 64)))
        while await context.read() is not grpc.aio.EOF:
            pass

    async def mistaken(_offer: object) -> AssignmentAnswer:
        raise RuntimeError("nobody foresaw this")

    async def scenario() -> None:
        async with scripted_controller(tmp_path, script) as identity, running_board(identity) as board:
            board.ledger.accept = mistaken  # type: ignore[method-assign]
            await until(lambda: len(opened) == 2 and board.number == 1)
            assert any(reason.startswith("internal error of the agent: ") for reason in board.reasons)

    asyncio.run(scenario())
    assert "nobody foresaw this" in caplog.text


@pytest.mark.parametrize("cut", [False, True])
def test_a_board_that_loses_its_power_says_no_goodbye(tmp_path: Path, cut: bool) -> None:
    """An agent that is told to stop takes its leave; one whose session is broken off is gone without a word."""
    heard: list[object] = []
    over = asyncio.Event()

    async def script(context: Any) -> None:
        await context.write(WELCOME)
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                heard.append(decode_board_message(request))
        finally:
            over.set()

    async def scenario() -> None:
        async with scripted_controller(tmp_path, script) as identity:
            async with running_board(identity) as board:
                await until(lambda: board.number == 1)
                if cut:
                    board.runner.break_off()
            await over.wait()
        assert any(isinstance(message, Goodbye) for message in heard) is not cut

    asyncio.run(scenario())


def test_reports_keep_the_minimum_interval_and_carry_the_latest_state(tmp_path: Path) -> None:
    """A state that changes a thousand times a second is sent ten times, and the last one arrives."""
    reports: list[tuple[float, Report]] = []
    clock = SystemClock()
    welcome = pb.SessionResponse(
        welcome=pb.Welcome(fleet_id="f-1", session_number=1, heartbeat_milliseconds=5000, report_interval_min_milliseconds=100)
    )

    async def script(context: Any) -> None:
        await context.read()
        await context.write(welcome)
        while (message := await context.read()) is not grpc.aio.EOF:
            decoded = decode_board_message(message)
            if isinstance(decoded, Report):
                reports.append((clock.monotonic(), decoded))

    async def scenario() -> None:
        async with scripted_controller(tmp_path, script) as identity, running_board(identity) as board:
            await until(lambda: reports)
            state = board.reports.state
            assert state is not None
            for number in range(1, 301):
                board.reports.publish(type(state)(assignment_number=number, facts=state.facts))
                await asyncio.sleep(0.001)  # noqa: TID251 (the load of this test)
            await until(lambda: reports[-1][1].state.assignment_number == 300)
            moments = [moment for moment, _ in reports]
            assert len(moments) <= 2 + (moments[-1] - moments[0]) / 0.1

    asyncio.run(scenario())


def test_a_grant_that_was_under_way_when_the_session_ended_is_unavailable(tmp_path: Path) -> None:
    """Whoever waits for a grant hears of the end at once and asks again in the next session."""

    class NoGrant:
        def __init__(self) -> None:
            self.asked = asyncio.Event()

        async def grant(self, board: str, digests: tuple[str, ...]) -> Grant:
            self.asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> None:
        issuer: Any = NoGrant()
        async with session_world(tmp_path, issuer=issuer) as world:
            identity = await world.join("b-1")
            async with running_board(identity) as board:
                waiting = asyncio.ensure_future(board.runner.request_grant(("sha256:" + "1" * 64,)))
                await issuer.asked.wait()
                async with running_board(identity):
                    with pytest.raises(Unavailable, match="the session ended before the grant came"):
                        await waiting

    asyncio.run(scenario())
