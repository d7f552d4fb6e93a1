"""Certificates are renewed over real HTTPS by the known key, also after they have ended, and by nobody else."""

from __future__ import annotations

import asyncio
import base64
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from controller.api.limits import FAILURE_SECONDS, FAILURES_MAX, FailureLimit
from controller.trust.binding import MACHINE_ANNOTATION
from controller.trust.pki import MEMBER_LIFETIME, read_request
from gateway.app import _renewing as gateway_renewing
from gateway.app import board_context
from rkfleet import enrolment_client
from rkfleet.clock import SystemClock, format_time
from rkfleet.enrolment import RENEWALS_PATH, RenewalRequest, serving_name
from rkfleet.errors import FailedPrecondition, FleetError, PermissionDenied, ResourceExhausted, Unavailable
from rkfleet.fleet_time import FleetTime
from rkfleet.http1 import Connection
from rkfleet.identity import Identity, load_identity
from rkfleet.metric_names import CERTIFICATE_EXPIRY
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, serve_asgi, server_context
from rkfleet.renew import renew, signed_request
from rkfleet.renewal import RETRY_SECONDS_MAX, UNDATED_SECONDS, Renewal, Renewing, renew_in_child
from tests.integration.test_enrollment import EnrollingWorld, enrolling_world, join
from tests.support.agents import BOARD as BOARD_NAME
from tests.support.agents import MACHINE_ID, running_agent
from tests.support.clocks import ManualClock
from tests.support.sessions import board_ref, running_board, until

BOARD = Renewal(role="board", machine_id="machine-1")


def ends(identity: Identity) -> datetime:
    return x509.load_pem_x509_certificate(identity.cert_file.read_bytes()).not_valid_after_utc


async def joined(world: EnrollingWorld, directory: Path, role: Any = "board", name: str = "b-1") -> Identity:
    found = await join(directory, world.enrolment(role, name))
    assert isinstance(found, Identity)
    return found


def expire(world: EnrollingWorld, identity: Identity) -> None:
    """Put the certificates there that the board would have if it had been switched off for a year."""
    key = enrolment_client.load_key(identity.key_file)
    public = read_request(enrolment_client.sign_request(key, identity.name))
    made = world.sessions.pki.issue_board(identity.name, public, SystemClock().now() - timedelta(days=365))
    identity.cert_file.write_text(made.client)
    identity.serving_cert_file.write_text(made.serving)


def test_a_board_whose_certificate_has_ended_renews_it_and_is_back_in_session(tmp_path: Path) -> None:
    """An ended certificate does not get through the session's handshake; the renewal asks for none, and the key stays."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "b-1" / "identity")
            assert abs(ends(identity) - SystemClock().now() - MEMBER_LIFETIME) < timedelta(minutes=1)
            expire(world, identity)
            async with running_board(identity) as board:
                await until(lambda: "UNAVAILABLE" in board.reason)
                key = identity.key_file.read_bytes()
                await renew_in_child(identity.directory, BOARD)
                await until(lambda: board.number == 1)
            renewed = load_identity(identity.directory)
            assert renewed is not None
            assert renewed.key_file.read_bytes() == key
            assert ends(renewed) > SystemClock().now() + timedelta(days=89)
            assert renewed.expires_timestamp == pytest.approx(ends(renewed).timestamp(), abs=1)
            assert {path.stat().st_mode & 0o777 for path in renewed.directory.iterdir()} == {0o600}

    asyncio.run(scenario())


def test_a_kill_between_the_answer_and_the_disk_locks_nobody_out(tmp_path: Path) -> None:
    """Whatever part of an answer reached the disk: the board comes into session with it, and renews again."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "b-1" / "identity")
            before = {path.name: path.read_bytes() for path in identity.directory.iterdir()}
            await asyncio.to_thread(renew, identity.directory, BOARD)
            after = {path.name: path.read_bytes() for path in identity.directory.iterdir()}
            assert after["cert.pem"] != before["cert.pem"]
            order = ["cert.pem", "ca.pem", "serving.pem", "gateways-ca.pem", "identity.json"]
            for number in range(len(order) + 1):
                for position, name in enumerate(order):
                    (identity.directory / name).write_bytes((after if position < number else before)[name])
                async with running_board(identity) as board:
                    await until(lambda: board.number)
                await asyncio.to_thread(renew, identity.directory, BOARD)

    asyncio.run(scenario())


def test_renewals_of_others_are_refused_with_a_reason(tmp_path: Path) -> None:
    """A deleted board, another key, another machine, another fleet's words: each is told why, and nothing on the disk changes."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "b-1" / "identity")
            files = {path.name: path.read_bytes() for path in identity.directory.iterdir()}
            with pytest.raises(PermissionDenied, match=f"another machine than machine-2.*{MACHINE_ANNOTATION}-"):
                await asyncio.to_thread(renew, identity.directory, Renewal(role="board", machine_id="machine-2"))

            thief = await joined(world, tmp_path / "b-2" / "identity", name="b-2")
            facts = msgspec.json.decode((thief.directory / "identity.json").read_bytes())
            (thief.directory / "identity.json").write_bytes(msgspec.json.encode({**facts, "name": "b-1"}))
            with pytest.raises(PermissionDenied, match="b-1 does not belong to this key"):
                await asyncio.to_thread(renew, thief.directory, BOARD)

            await world.sessions.store.delete(board_ref("b-1"), now=SystemClock().now())
            with pytest.raises(PermissionDenied, match=r"b-1 does not exist here \(any more\), so its key is revoked; join again"):
                await asyncio.to_thread(renew, identity.directory, BOARD)
            assert {path.name: path.read_bytes() for path in identity.directory.iterdir()} == files

            elsewhere = files["identity.json"].replace(world.url.encode(), b"https://127.0.0.1:1")
            (identity.directory / "identity.json").write_bytes(elsewhere)
            with pytest.raises(Unavailable, match="cannot be reached"):
                await asyncio.to_thread(renew, identity.directory, BOARD)

    asyncio.run(scenario())


def test_a_proof_holds_for_one_fleet_name_machine_and_request_only(tmp_path: Path) -> None:
    """Whoever changes a word of a renewal on the way has no signature for it."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "b-1" / "identity")
            key = enrolment_client.load_key(identity.key_file)
            other = ec.generate_private_key(ec.SECP256R1())
            asked = RenewalRequest(
                csr_pem=enrolment_client.sign_request(key, "b-1"), proof="", board_name="b-1", machine_id="machine-1"
            )  # fmt: skip
            signed = signed_request(asked, identity.fleet_id, key)
            replaced = msgspec.structs.replace
            cases: list[tuple[RenewalRequest, int, str]] = [
                (signed_request(asked, "other-fleet", key), 403, "proof is no signature"),
                (signed_request(asked, identity.fleet_id, other), 403, "proof is no signature"),
                (replaced(signed, machine_id="machine-2"), 403, "proof is no signature"),
                (replaced(signed, csr_pem=enrolment_client.sign_request(key, "b-1")), 403, "proof is no signature"),
                (replaced(signed, proof="%"), 400, "proof is not base64"),
                (replaced(signed, proof=base64.b64encode(b"x").decode()), 403, "proof is no signature"),
                (replaced(signed, gateway_name="gw"), 400, "either boardName or gatewayName"),
                (replaced(signed, csr_pem="x"), 400, "csrPem cannot be read"),
            ]
            async with world.client() as client:
                for request, status, reason in cases:
                    answer = await client.post(RENEWALS_PATH, content=msgspec.json.encode(request))
                    assert (answer.status_code, reason in answer.json()["message"]) == (status, True), answer.text
                assert (await client.post(RENEWALS_PATH, content=msgspec.json.encode(signed))).status_code == 200

    asyncio.run(scenario())


def test_a_gateway_renews_with_its_api_token_and_the_key_of_its_certificate(tmp_path: Path) -> None:
    """Either alone is not enough, and the API token stays."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "gw", "gateway", "gw-1")
            before = identity.cert_file.read_bytes()
            await renew_in_child(identity.directory, Renewal(role="gateway"))
            renewed = load_identity(identity.directory)
            assert renewed is not None
            assert renewed.cert_file.read_bytes() != before
            assert renewed.api_token == identity.api_token
            board = await joined(world, tmp_path / "b-1", name="b-1")
            key = enrolment_client.load_key(board.key_file)
            asked = RenewalRequest(
                csr_pem=enrolment_client.sign_request(key, "gw-1"), proof="", gateway_name="gw-1", certificate_pem=before.decode()
            )  # fmt: skip
            stolen_token = signed_request(asked, identity.fleet_id, key)
            own = msgspec.structs.replace(asked, certificate_pem=board.cert_file.read_text())
            wrong_ca = signed_request(own, identity.fleet_id, key)
            async with world.client(identity.api_token) as client:
                answer = await client.post(RENEWALS_PATH, content=msgspec.json.encode(stolen_token))
                assert (answer.status_code, "is not of gateway gw-1 with this key" in answer.text) == (403, True)
                answer = await client.post(RENEWALS_PATH, content=msgspec.json.encode(wrong_ca))
                assert (answer.status_code, "was not issued by the gateways CA" in answer.text) == (401, True)
            async with world.client() as client:
                assert (await client.post(RENEWALS_PATH, content=msgspec.json.encode(stolen_token))).status_code == 401

    asyncio.run(scenario())


def test_a_caller_that_is_refused_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    """Guessing is slow; a caller that succeeds is never limited."""
    clock = ManualClock()
    limit = FailureLimit("renewals", clock)
    for _ in range(FAILURES_MAX):
        limit.check("10.0.0.1")
        limit.failed("10.0.0.1")
    with pytest.raises(ResourceExhausted, match=r"20 renewals from 10\.0\.0\.1 were refused within 60 s; try again in 60 s"):
        limit.check("10.0.0.1")
    limit.check("10.0.0.2")
    clock.advance(FAILURE_SECONDS)
    limit.check("10.0.0.1")

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world, world.client() as client:
            answers = [await client.post(RENEWALS_PATH, content=b"{}") for _ in range(FAILURES_MAX + 1)]
            assert [one.status_code for one in answers] == [400] * FAILURES_MAX + [429]
            assert int(answers[-1].headers["retry-after"]) > 0

    asyncio.run(scenario())


def test_a_listener_takes_over_a_renewed_certificate_and_drops_no_connection(tmp_path: Path) -> None:
    """Whoever is connected goes on with the old one; whoever connects from now on sees the new one."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "b-1" / "identity")
            name, trusted = serving_name("b-1", identity.fleet_id), enrolment_client.verified(identity.ca_file.read_text())

            async def app(_scope: Any, _receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
                await send({"type": "http.response.body", "body": b"ok"})

            opened: list[Connection] = []

            async def ask(connection: Connection) -> int:
                return (await connection.ask("GET", "/", (), b"", seconds_max=5)).status

            async def connect() -> tuple[Connection, int]:
                connection = await Connection.open("127.0.0.1", listener.port, seconds_max=5, tls=trusted, server_name=name)
                opened.append(connection)
                shown = connection._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return connection, x509.load_der_x509_certificate(shown).serial_number

            tls = Tls(identity.serving_cert_file, identity.key_file)
            async with serve_asgi(app, "127.0.0.1", 0, tls=tls, shutdown_seconds=0.2) as listener:
                before, first = await connect()
                assert await ask(before) == 200
                await asyncio.to_thread(renew, identity.directory, BOARD)
                listener.reload()
                after, second = await connect()
                assert second != first
                assert [await ask(after), await ask(before)] == [200, 200]
                identity.serving_cert_file.write_text("spoiled")
                with pytest.raises(FailedPrecondition, match=r"serving\.pem.*cannot be used"):
                    listener.reload()
                assert (await connect())[1] == second
                for connection in opened:
                    connection.close()

    asyncio.run(scenario())


@pytest.mark.processes
def test_an_agent_renews_by_itself_keeps_its_session_and_says_what_to_do_when_it_is_revoked(tmp_path: Path) -> None:
    """A process whose certificate is in its last third has a new one soon; one whose Board is deleted goes on and names the command."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller", loops=True) as world:
            data_dir = tmp_path / "agents" / BOARD_NAME
            enrolment = world.enrolment(name=BOARD_NAME, machine_id=MACHINE_ID)
            identity = await join(data_dir / "identity", enrolment)
            old = SystemClock().now() - timedelta(days=80)
            facts = msgspec.json.decode((identity.directory / "identity.json").read_bytes())
            facts |= {"issued": format_time(old), "expires": format_time(old + MEMBER_LIFETIME)}
            (identity.directory / "identity.json").write_bytes(msgspec.json.encode(facts))
            async with running_agent(data_dir) as agent:

                async def renewed() -> bool:
                    found = load_identity(identity.directory)
                    assert found is not None
                    shown = await agent.metric('rkfleet_certificate_expiry_timestamp_seconds{certificate="board"}')
                    return found.expires != facts["expires"] and shown == found.expires_timestamp

                await until(renewed, 20)
                await until(lambda: world.sessions.hub.presence(BOARD_NAME)[0])
                assert (await world.sessions.board(BOARD_NAME)).status.session.number == 1

                await world.sessions.store.delete(board_ref(BOARD_NAME), now=SystemClock().now())
                await until(lambda: "its key is revoked; it goes on serving its own network" in agent.log.read_text(), 5)
                assert f"rkfleet join-token create --name {BOARD_NAME}" in agent.log.read_text()
                assert await agent.metric("rkfleet_agent_session_open") == 0
                assert await agent.is_ready()
                assert await agent.stop() == 0

    asyncio.run(scenario())


def test_a_gateway_renews_by_itself_and_shows_the_new_certificate_to_boards(tmp_path: Path) -> None:
    """Without a restart: connections from then on are made with it, and its end is a metric."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await joined(world, tmp_path / "gw", "gateway", "gw-1")
            board = await joined(world, tmp_path / "b-1", name="b-1")
            context = board_context(identity.cert_file, identity.key_file, identity.ca_file)
            shown: list[int] = []

            async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                shown.append(x509.load_der_x509_certificate(der).serial_number)
                writer.close()

            tls = server_context(Tls(board.serving_cert_file, board.key_file, board.gateways_ca_file))
            server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=tls)

            async def connect() -> int:
                port, before = server.sockets[0].getsockname()[1], len(shown)
                name = serving_name("b-1", identity.fleet_id)
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
                await until(lambda: len(shown) > before)
                writer.close()
                await writer.wait_closed()
                return shown[-1]

            metrics, first = Metrics("gateway"), await connect()
            ago = SystemClock().now() - timedelta(days=80)
            old = msgspec.structs.replace(identity, issued=format_time(ago), expires=format_time(ago + MEMBER_LIFETIME))
            renewing = gateway_renewing(old, context, SystemClock(), metrics)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(renewing.run())
                await until(lambda: renewing.identity is not old)
                running.cancel()
            assert await connect() != first
            gauge = metrics.gauge(CERTIFICATE_EXPIRY, certificate="gateway")._value.get()
            assert gauge == renewing.identity.expires_timestamp
            server.close()
            await server.wait_closed()

    asyncio.run(scenario())


# ---- when ----------------------------------------------------------------------------------------------------------------------


class Renewer:
    """Renews as often as it is asked, or refuses; remembers when it was asked."""

    def __init__(self, directory: Path, clock: ManualClock) -> None:
        self.directory, self.clock = directory, clock
        self.controller_time = clock.now
        self.asked: list[float] = []
        self.refusal: FleetError | None = None
        self.write(clock.now())

    def write(self, issued: datetime, days: float = 90.0) -> None:
        """Make the identity that a controller would leave at that moment."""
        for name in ("key.pem", "cert.pem", "ca.pem"):
            (self.directory / name).write_text("x")
        facts = {"fleetId": "f", "name": "b", "controller": "https://x", "issued": issued.isoformat()}
        facts["expires"] = (issued + timedelta(days=days)).isoformat()
        (self.directory / "identity.json").write_bytes(msgspec.json.encode(facts))

    async def renew(self, directory: Path, renewal: Renewal) -> None:
        self.asked.append(self.clock.monotonic())
        if self.refusal is not None:
            raise self.refusal
        self.write(self.controller_time())

    def renewing(self, **options: Any) -> Renewing:
        found = load_identity(self.directory)
        assert found is not None
        options = {"now": self.clock.now, "on_renewed": lambda _: None, **options}
        return Renewing(found, BOARD, clock=self.clock, jitter=random.Random(1), renew=self.renew, **options)


async def run_for(clock: ManualClock, days: float, step_seconds: float = 600.0) -> None:
    for _ in range(round(days * 86400 / step_seconds)):
        clock.advance(step_seconds)
        for _ in range(8):
            await asyncio.sleep(0)  # noqa: TID251 (lets the loop take its turn)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life_again_and_again(tmp_path: Path) -> None:
    """A month before the end, spread over nine days; each renewal begins the next life."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing().run())
            await run_for(clock, 59.9, 3600)
            assert renewer.asked == []
            await run_for(clock, 9.2, 3600)
            assert len(renewer.asked) == 1
            await run_for(clock, 70, 3600)
            assert len(renewer.asked) == 2
            running.cancel()

    asyncio.run(scenario())


def test_a_refused_renewal_is_asked_for_ever_more_slowly(tmp_path: Path) -> None:
    """A board that was revoked costs the controller four calls a day."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        renewer.write(clock.now() - timedelta(days=80))
        renewer.refusal = PermissionDenied("board b does not exist here (any more)")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing().run())
            await run_for(clock, 2, 60)
            assert 10 <= len(renewer.asked) <= 28
            pauses = [after - before for before, after in zip(renewer.asked, renewer.asked[1:], strict=False)]
            assert max(pauses) <= RETRY_SECONDS_MAX + 120
            running.cancel()

    asyncio.run(scenario())


def test_certificates_of_before_dates_were_told_are_renewed_soon_after_the_start(tmp_path: Path) -> None:
    """Those that last a year are exchanged for dated ones once, and not again."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        facts = {"fleetId": "f", "name": "b", "controller": "https://x"}
        (tmp_path / "identity.json").write_bytes(msgspec.json.encode(facts))
        told: list[Identity] = []
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing(on_renewed=told.append).run())
            await run_for(clock, 1)
            assert len(renewer.asked) == 1
            assert renewer.asked[0] <= UNDATED_SECONDS + 600
            assert told[0].expires
            running.cancel()

    asyncio.run(scenario())


def test_the_controllers_clock_decides_when_the_boards_own_is_wrong_by_years(tmp_path: Path) -> None:
    """In 1970 nothing would ever be due, in 2040 everything; what the controller said counts, and nothing before it was heard."""
    clock = ManualClock()
    time = FleetTime(clock)
    assert not time.is_told
    assert time.now() == clock.now()
    time.tell(datetime(2031, 5, 1, tzinfo=UTC))
    clock.advance(60)
    assert time.now() == datetime(2031, 5, 1, 0, 1, tzinfo=UTC)

    async def scenario() -> None:
        renewer = Renewer(tmp_path, clock)
        renewer.controller_time = time.now
        renewer.write(datetime(2031, 3, 1, tzinfo=UTC))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing(now=time.now).run())
            await run_for(clock, 0.1)
            assert len(renewer.asked) == 0
            await run_for(clock, 9, 3600)
            assert len(renewer.asked) == 1
            running.cancel()

    asyncio.run(scenario())


def test_a_board_whose_clock_is_years_ahead_does_not_renew_all_the_time(tmp_path: Path) -> None:
    """By its clock every new certificate has ended; it asks four to eight times a day until it hears what time it is."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing(now=lambda: clock.now() + timedelta(days=3650)).run())
            await run_for(clock, 2, 60)
            assert 8 <= len(renewer.asked) <= 17
            running.cancel()

    asyncio.run(scenario())


def test_a_board_that_cannot_know_the_time_and_has_no_session_asks_now_and_then(tmp_path: Path) -> None:
    """Its certificate may have ended; that it says otherwise by a clock at 1970 does not keep it out."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        renewer.refusal = Unavailable("the controller cannot be reached")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(renewer.renewing(lost_seconds=clock.monotonic).run())
            await run_for(clock, 0.01, 30)
            assert renewer.asked
            assert renewer.asked[0] <= 180
            await run_for(clock, 3)
            assert len(renewer.asked) < 30
            running.cancel()

    asyncio.run(scenario())


def test_an_older_controller_that_tells_no_dates_is_asked_rarely(tmp_path: Path) -> None:
    """A board that is ahead of its controller does not ask it every minute."""

    async def scenario() -> None:
        clock = ManualClock()
        renewer = Renewer(tmp_path, clock)
        undated = msgspec.json.encode({"fleetId": "f", "name": "b", "controller": "https://x"})
        (tmp_path / "identity.json").write_bytes(undated)
        async with asyncio.TaskGroup() as tasks:
            renewing = renewer.renewing(on_renewed=lambda _: (tmp_path / "identity.json").write_bytes(undated))
            running = tasks.create_task(renewing.run())
            renewer.write = lambda *_, **__: None  # type: ignore[method-assign]  # what an older controller leaves
            await run_for(clock, 2)
            assert 8 <= len(renewer.asked) <= 16
            running.cancel()

    asyncio.run(scenario())
