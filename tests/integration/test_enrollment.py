"""Joining a fleet over real HTTPS: the enrolment client against the routes, from the join token to the first session."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from typer.testing import CliRunner

from controller.api.kubeconfig import kubeconfig
from controller.trust.binding import KEY_ANNOTATION, MACHINE_ANNOTATION, Binding
from controller.trust.pki import read_peer
from rkfleet.cli.main import app
from rkfleet.enroll import enroll
from rkfleet.errors import FailedPrecondition, Invalid, PermissionDenied, Unauthenticated, Unavailable
from rkfleet.identity import Enrolment, ensure_identity, load_identity
from rkfleet.kinds import KINDS
from rkfleet.ops import Tls, serve_asgi
from tests.support.clocks import ManualClock
from tests.support.enrolling import enrolling_api
from tests.support.faulty_store import FaultyStore
from tests.support.sessions import SessionWorld, running_board, session_world, until

NOBODY_LISTENS = "https://127.0.0.1:1"


@dataclass
class EnrollingWorld:
    """A controller with both listeners."""

    sessions: SessionWorld
    url: str

    def enrolment(self, role: Any = "board", name: str = "b-1", **fields: Any) -> Enrolment:
        """Return what a join command with a new token would carry."""
        made = Enrolment(
            role=role, name=name, controller=self.url, token=self.sessions.tokens.create_join_token(role)[0],
            ca_pin=self.sessions.pki.ca_pin, machine_id="machine-1",
        )  # fmt: skip
        return msgspec.structs.replace(made, **fields)

    @contextlib.asynccontextmanager
    async def client(self, token: str = "") -> AsyncIterator[httpx2.AsyncClient]:
        """Give an HTTP client with this API token."""
        context = ssl.create_default_context(cadata=self.sessions.pki.ca_pem("servers"))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx2.AsyncClient(base_url=self.url, verify=context, headers=headers) as client:
            yield client


@contextlib.asynccontextmanager
async def enrolling_world(directory: Path, **options: Any) -> AsyncIterator[EnrollingWorld]:
    """Run a controller's session side and its API with the enrolment routes."""
    async with session_world(directory, **options) as world, enrolling_api(world) as listener:
        yield EnrollingWorld(world, listener.url)


async def join(directory: Path, enrolment: Enrolment) -> Any:
    """Run the enrolment client as its process would, and return the identity that it left."""
    await asyncio.to_thread(enroll, directory, enrolment)
    return load_identity(directory)


def test_a_board_joins_with_a_token_and_takes_its_session_with_what_it_got(tmp_path: Path) -> None:
    """One token, one key, one Board; the files are private, and the token is used up by the first session."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            enrolment, directory = world.enrolment(), tmp_path / "b-1" / "identity"
            identity = await join(directory, enrolment)
            assert {path.name for path in directory.iterdir()} == {
                "key.pem", "cert.pem", "ca.pem", "serving.pem", "gateways-ca.pem", "identity.json",
            }  # fmt: skip
            assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
            assert identity.session_address == f"127.0.0.1:{world.sessions.port}"
            board = await world.sessions.board("b-1")
            assert board.metadata.annotations[MACHINE_ANNOTATION] == "machine-1"
            assert board.metadata.annotations[KEY_ANNOTATION] == read_peer(identity.cert_file.read_bytes()).key_sha256
            async with running_board(identity) as running:
                await until(lambda: running.number == 1)
                await until(lambda: not world.sessions.tokens.settles("b-1", board.metadata.annotations[KEY_ANNOTATION]))
            with pytest.raises(PermissionDenied, match="used by b-1, which has been in session since"):
                await join(directory, enrolment)

    asyncio.run(scenario())


def test_a_board_that_was_killed_before_it_wrote_the_answer_joins_again_with_the_same_token(tmp_path: Path) -> None:
    """The key was on disk first, and the same key may repeat."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            enrolment, directory = world.enrolment(), tmp_path / "identity"
            await join(directory, enrolment)
            key = (directory / "key.pem").read_bytes()
            for path in directory.iterdir():
                if path.name != "key.pem":
                    path.unlink()
            assert load_identity(directory) is None
            assert (await join(directory, enrolment)).name == "b-1"
            assert (directory / "key.pem").read_bytes() == key

    asyncio.run(scenario())


def test_wrong_tokens_keys_names_and_pins_are_refused_with_a_reason(tmp_path: Path) -> None:
    """Every refusal says what was wrong; none makes a Board."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            used = world.enrolment()
            await join(tmp_path / "used", used)
            cases: list[tuple[Enrolment, type[Exception], str]] = [
                (world.enrolment(token="rkj1.0000000000.00"), Unauthenticated, "join token is unknown to this controller"),
                (world.enrolment(ca_pin="sha256:" + "0" * 64), PermissionDenied, "expected sha256:0000.*the token was not sent"),
                (used, PermissionDenied, "used by b-1 with another key|belongs to another key"),
                (msgspec.structs.replace(used, name="b-9"), PermissionDenied, "used by b-1 with another key"),
                (world.enrolment(name="b-1"), PermissionDenied, "board b-1 already exists and belongs to another key"),
                (world.enrolment(name="Not_A_Name"), Invalid, "boardName 'Not_A_Name' must be lower-case"),
                (world.enrolment(name="x" * 64), Invalid, "64 characters, at most 63"),
                (world.enrolment(machine_id="m" * 129), Invalid, "machineId must be at most 128"),
                (msgspec.structs.replace(world.enrolment("gateway"), role="board"), Invalid, "this join token is for a gateway"),
                (world.enrolment(controller="http://127.0.0.1"), Invalid, "must be https://host:port"),
                (world.enrolment(controller=NOBODY_LISTENS), Unavailable, "controller https://127.0.0.1:1 cannot be reached"),
            ]
            for number, (enrolment, error, reason) in enumerate(cases):
                with pytest.raises(error, match=reason):
                    await join(tmp_path / str(number), enrolment)
                assert load_identity(tmp_path / str(number)) is None
            page = await world.sessions.store.list(KINDS.find("boards.rkfleet.dev").resource.name)  # type: ignore[union-attr]
            assert [item.ref.name for item in page.items] == ["b-1"]

    asyncio.run(scenario())


def test_a_refusal_for_a_taken_name_does_not_cost_the_token(tmp_path: Path) -> None:
    """Whoever mistyped a name may use the same command with another one."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            await join(tmp_path / "first", world.enrolment())
            enrolment = world.enrolment()
            with pytest.raises(PermissionDenied):
                await join(tmp_path / "second", enrolment)
            assert (await join(tmp_path / "second", msgspec.structs.replace(enrolment, name="b-2"))).name == "b-2"

    asyncio.run(scenario())


def test_a_server_that_shows_the_right_ca_and_has_not_its_key_gets_no_token(tmp_path: Path) -> None:
    """The pin says whom to believe; the handshake with the token proves it."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "real") as real, session_world(tmp_path / "false") as false:
            asked: list[str] = []

            async def impostor(scope: Any, receive: Any, send: Any) -> None:
                asked.append(scope["path"])
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": real.sessions.pki.ca_pem("servers").encode()})

            cert_file, key_file = false.pki.server_files("controller")
            async with serve_asgi(impostor, "127.0.0.1", 0, tls=Tls(cert_file, key_file), shutdown_seconds=0.2) as listener:
                with pytest.raises(PermissionDenied, match=r"cannot be trusted.*the token was not sent"):
                    await join(tmp_path / "identity", real.enrolment(controller=listener.url))
            assert asked == ["/.well-known/rkfleet/ca.crt"]

    asyncio.run(scenario())


def test_a_board_that_an_operator_made_in_advance_keeps_its_labels(tmp_path: Path) -> None:
    """Labels and taints may stand before the machine arrives; enrolment binds what is there."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            await world.sessions.create_board("b-1", Binding(), labels={"rkfleet.dev/site": "lab"})
            await join(tmp_path / "identity", world.enrolment())
            board = await world.sessions.board("b-1")
            assert board.metadata.labels["rkfleet.dev/site"] == "lab"
            assert board.metadata.annotations[MACHINE_ANNOTATION] == "machine-1"

    asyncio.run(scenario())


def test_a_gateway_joins_and_gets_an_api_token_and_a_certificate_of_its_class(tmp_path: Path) -> None:
    """It reads what routing needs, and boards recognise it."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await join(tmp_path / "identity", world.enrolment("gateway", "gw-1"))
            assert read_peer(identity.cert_file.read_bytes()).class_ == "gateways"
            async with world.client(identity.api_token) as client:
                assert (await client.get("/apis/rkfleet.dev/v1alpha1/boards")).status_code == 200
                assert (await client.get("/enrollment/v1alpha1/join-tokens")).status_code == 403

    asyncio.run(scenario())


def test_join_tokens_are_made_and_listed_by_admins_only(tmp_path: Path) -> None:
    """The answer carries what a join command needs; the list has no secrets."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            path = "/enrollment/v1alpha1/join-tokens"
            async with world.client() as client:
                assert (await client.post(path, json={"role": "board"})).status_code == 401
                ca = await client.get("/.well-known/rkfleet/ca.crt")
                assert ca.text == world.sessions.pki.ca_pem("servers")
            async with world.client(world.sessions.tokens.issue_api_token("ada", "admin")) as client:
                made = await client.post(path, json={"role": "board", "lifetimeSeconds": 60})
                assert (made.status_code, made.json()["caPin"]) == (201, world.sessions.pki.ca_pin)
                listed = (await client.get(path)).json()["items"]
                assert [(item["role"], item["expires"], item["usedBy"]) for item in listed] == [("board", made.json()["expires"], "")]
                assert made.json()["token"].rpartition(".")[2] not in str(listed)
                for body, status in (({"role": "king"}, 400), ({"lifetimeSeconds": 0}, 422), ([], 400)):
                    assert (await client.post(path, json=body)).status_code == status

    asyncio.run(scenario())


def test_a_full_disk_at_the_controller_is_unavailable_and_the_same_command_works_later(tmp_path: Path) -> None:
    """Nothing is half joined: the token is still good for the same key."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller", wrap=FaultyStore) as world:
            store: Any = world.sessions.store
            store.fails = lambda method, ref: method == "create"
            enrolment = world.enrolment()
            with pytest.raises(Unavailable, match="disk is full"):
                await join(tmp_path / "identity", enrolment)
            store.fails = lambda method, ref: False
            assert (await join(tmp_path / "identity", enrolment)).name == "b-1"

    asyncio.run(scenario())


def test_a_program_waits_for_a_controller_that_is_away_and_then_joins_in_a_child_process(tmp_path: Path) -> None:
    """The client is asked again until it succeeds; what remains in the program needs no cryptography."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            clock, directory = ManualClock(), tmp_path / "identity"
            away = world.enrolment(controller=NOBODY_LISTENS)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(ensure_identity(directory, away, clock, random.Random(1)))
                await until((directory / "key.pem").exists)
                await until(lambda: clock._sleepers)
                assert not waiting.done()
                waiting.cancel()
            joined = await ensure_identity(directory, world.enrolment(), clock, random.Random(1))
            assert joined == load_identity(directory)
            assert await ensure_identity(directory, None, clock, random.Random(1)) == joined

    asyncio.run(scenario())


def test_a_program_that_is_refused_for_good_ends_with_the_reason(tmp_path: Path) -> None:
    """A wrong pin is no matter of waiting, and neither is having nothing to join with."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            wrong = world.enrolment(ca_pin="sha256:" + "0" * 64)
            with pytest.raises(PermissionDenied, match="expected sha256:0000"):
                await ensure_identity(tmp_path / "one", wrong, ManualClock(), random.Random(1))
            with pytest.raises(FailedPrecondition, match="see: rkfleet join-token create"):
                await ensure_identity(tmp_path / "two", None, ManualClock(), random.Random(1))

    asyncio.run(scenario())


def test_a_program_joins_with_a_token_file_and_comes_back_without_it(tmp_path: Path) -> None:
    """No secret stands in its arguments; the file is looked at until there is an identity, and a missing one is named."""

    async def scenario() -> None:
        file, directory, clock = tmp_path / "token", tmp_path / "b-1" / "identity", ManualClock()
        async with enrolling_world(tmp_path / "controller") as world:
            told = world.enrolment()
            without = msgspec.structs.replace(told, token="", ca_pin="")
            with pytest.raises(
                FailedPrecondition, match=r"token cannot be read: No such file.*; see: rkfleet join-token create --token-file"
            ):
                await ensure_identity(directory, without, clock, random.Random(1), file)
            file.write_bytes(msgspec.json.encode({"token": told.token, "role": "board", "expires": "", "caPin": told.ca_pin}))
            joined = await ensure_identity(directory, without, clock, random.Random(1), file)
            assert joined.fleet_id == world.sessions.pki.fleet_id
            file.unlink()
            assert await ensure_identity(directory, without, clock, random.Random(1), file) == joined

    asyncio.run(scenario())


def test_the_command_line_writes_a_token_file_that_joins_and_keeps_it(tmp_path: Path) -> None:
    """Readable by its owner only; a second call makes no token, and --replace makes another."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            config, file = tmp_path / "kubeconfig", tmp_path / "token"
            token = world.sessions.tokens.issue_api_token("admin", "admin")
            config.write_text(kubeconfig(server=world.url, ca_pem=world.sessions.pki.ca_pem("servers").encode(), token=token))
            words = ["join-token", "create", "--role", "board", "--name", "b-1", "--token-file", str(file), "--kubeconfig", str(config)]
            said = await asyncio.to_thread(CliRunner().invoke, app, words)
            assert said.stdout.startswith(f"rkfleet agent run --controller {world.url} --token-file {file} --name b-1")
            assert "rkj1." not in said.stdout
            assert file.stat().st_mode & 0o777 == 0o600
            written = file.read_text()
            assert f"{file} is there already" in (await asyncio.to_thread(CliRunner().invoke, app, words)).stdout
            assert file.read_text() == written
            enrolment = msgspec.structs.replace(world.enrolment(), token="", ca_pin="")
            assert (await ensure_identity(tmp_path / "b-1", enrolment, ManualClock(), random.Random(1), file)).name == "b-1"
            await asyncio.to_thread(CliRunner().invoke, app, [*words, "--replace"])
            assert file.read_text() != written

    asyncio.run(scenario())


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    """A program does not enrol over files that may still be somebody's."""
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"identity\.json cannot be read"):
        load_identity(tmp_path)
    (tmp_path / "identity.json").write_text('{"fleetId": "f", "name": "b", "controller": "https://x"}')
    with pytest.raises(FailedPrecondition, match=r"key\.pem is missing"):
        load_identity(tmp_path)
