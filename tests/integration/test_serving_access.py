"""Who may ask a board: doors of its listeners, by real HTTP and TLS."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2
import ollama
import openai
import pytest

from agent.config import parse_arguments
from agent.serving.access import GatewayDoor, KeyDoor, LocalDoor, LocalHosts
from agent.serving.app import Serving
from rkfleet.api_keys import key_line, parse_api_keys, tenant_of
from rkfleet.cli import gateway_keys
from rkfleet.clock import Clock, SystemClock
from rkfleet.ops import ASGIApp, Tls, ops_app, serve_asgi
from tests.support.clocks import ManualClock
from tests.support.scripted_serving import ASK, Board, scripted
from tests.support.scripted_worker import chunk

KEY = "0123456789abcdef0123456789abcdef"
KEYS = parse_api_keys(key_line("alice", KEY), "keys")
PAGE = "https://app.example"


def keyed(clock: Clock = SystemClock()) -> Callable[[Serving], ASGIApp]:
    def door(serving: Serving) -> ASGIApp:
        return KeyDoor(serving, keys=KEYS, clock=clock, origins=[PAGE])

    return door


async def tenant(board: Board, **headers: str) -> object:
    """Return the tenant that the worker is told."""
    asking = asyncio.ensure_future(board.post("/v1/chat/completions", ASK, **headers))
    answer = await board.answered(asking, chunk("x"))
    board.worker.reset()
    assert answer.status_code == 200
    return httpx2.Response(200, content=board.worker.asked[-1]).json()["tenant"]


def test_a_wrong_key_is_401_in_the_words_of_whoever_asks() -> None:
    async def scenario() -> None:
        async with scripted(door=keyed()) as board:
            with pytest.raises(openai.AuthenticationError) as refused:
                await board.openai().models.list()
            assert refused.value.code == "invalid_api_key"
            assert refused.value.response.headers["x-request-id"]
            with pytest.raises(ollama.ResponseError) as told:
                await board.ollama().list()
            assert (told.value.status_code, "the API key is missing" in told.value.error) == (401, True)
            for header in (f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x"):
                assert (await board.post("/v1/chat/completions", ASK, authorization=header)).status_code == 401

    asyncio.run(scenario())


def test_a_tenant_is_its_key_and_no_client_can_choose_another() -> None:
    alice = tenant_of("board", "alice")

    async def scenario() -> None:
        async with scripted(door=keyed(), runtime="rkllm") as board:
            assert await tenant(board, authorization=f"Bearer {KEY}", x_rkfleet_tenant="0" * 32) == alice
        async with scripted(door=lambda serving: LocalDoor(serving, keys=KEYS), runtime="rkllm") as board:
            assert await tenant(board, x_rkfleet_tenant="0" * 32) == "local"
            assert await tenant(board, authorization=f"Bearer {KEY}") == alice
        async with scripted(door=GatewayDoor, runtime="rkllm") as board:
            assert await tenant(board, x_rkfleet_tenant="0" * 32) == "0" * 32
            assert await tenant(board, x_rkfleet_tenant="local") == "gateway"
            assert await tenant(board) == "gateway"

    asyncio.run(scenario())


def test_guessing_has_a_limit_and_an_end() -> None:
    clock = ManualClock()

    async def scenario() -> list[int]:
        async with scripted(door=keyed(clock)) as board:
            statuses = [(await board.post("/api/show", {}, authorization="Bearer guess")).status_code for _ in range(12)]
            blocked = await board.post("/api/show", {"model": "m"}, authorization=f"Bearer {KEY}")
            assert int(blocked.headers["retry-after"]) >= 1
            clock.advance(61)
            after = await board.post("/api/show", {"model": "m"}, authorization=f"Bearer {KEY}")
            return [*statuses, blocked.status_code, after.status_code]

    assert asyncio.run(scenario()) == [401] * 10 + [429] * 3 + [200]


def test_web_pages_are_refused_unless_their_origin_is_allowed() -> None:
    """Also on loopback, where no key is asked for: a page that somebody opens is not somebody."""

    async def scenario() -> None:
        async with scripted(door=lambda serving: LocalDoor(serving, origins=[PAGE])) as board, httpx2.AsyncClient() as client:
            foreign = await client.post(f"{board.url}/api/generate", json={"model": "m"}, headers={"origin": "https://evil.example"})
            assert (foreign.status_code, foreign.json()["code"]) == (403, "origin_not_allowed")
            assert "--cors-origin https://evil.example" in foreign.json()["error"]
            asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
            before = await client.options(f"{board.url}/v1/chat/completions", headers=asks)
            assert (before.status_code, before.headers["access-control-allow-headers"]) == (204, "authorization")
            listed = await client.get(f"{board.url}/v1/models", headers={"origin": PAGE})
            assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (200, PAGE)
        async with scripted(door=LocalDoor) as board, httpx2.AsyncClient() as client:
            assert (await client.options(f"{board.url}/v1/models", headers=asks)).status_code == 403
            assert "access-control-allow-origin" not in (await client.get(f"{board.url}/v1/models")).headers

    asyncio.run(scenario())


def test_a_name_that_somebody_pointed_to_this_machine_is_no_way_in() -> None:
    """A page of that name reads with GET without telling its origin; everything on loopback is behind this, metrics too."""

    def doors(serving: Serving) -> ASGIApp:
        local = LocalDoor(serving, origins=[PAGE])
        return LocalHosts(ops_app(lambda: "", lambda: b"told", otherwise=local), serving, origins=[PAGE])

    async def scenario() -> None:
        async with scripted(door=doors) as board, httpx2.AsyncClient() as client:
            for path in ("/v1/models", "/api/tags", "/metrics", "/readyz", "/"):
                refused = await client.get(f"{board.url}{path}", headers={"host": "rebound.example:8080"})
                assert (refused.status_code, "host_not_allowed" in refused.text) == (403, True)
                for host in ("localhost:1", "127.0.0.1", "[::1]:8080", "board.localhost", "app.example"):
                    assert (await client.get(f"{board.url}{path}", headers={"host": host})).status_code == 200, host

    asyncio.run(scenario())


def test_clients_of_other_machines_come_over_tls(tmp_path: Path) -> None:
    gateway_keys.create(tmp_path, ["127.0.0.1"])
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    async def scenario() -> None:
        async with scripted() as board:
            door = KeyDoor(board.serving, keys=KEYS, clock=SystemClock())
            async with serve_asgi(door, "127.0.0.1", 0, tls=Tls(cert, key), shutdown_seconds=0.1) as listener:
                trusting = ssl.create_default_context(cafile=str(cert))
                async with httpx2.AsyncClient(verify=trusting) as http:
                    client = openai.AsyncOpenAI(base_url=f"{listener.url}/v1", api_key=KEY, http_client=http)
                    assert [model.id for model in (await client.models.list()).data] == ["m"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--client-host", "0.0.0.0"], "--api-keys-file"),
        (["--client-host", "0.0.0.0", "--api-keys-file", "KEYS", "--client-tls-cert", "x.pem"], "give both or none"),
        (["--api-keys-file", "missing"], "cannot be read"),
    ],
)
def test_flags_that_would_open_a_board_to_everybody_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    (tmp_path / "keys").write_text(key_line("alice", KEY))
    words = [str(tmp_path / "keys") if word == "KEYS" else word for word in flags]
    with pytest.raises(SystemExit):
        parse_arguments(["--data-dir", str(tmp_path), "--controller", "https://c:7443", "--name", "b", *words])
    assert why in capsys.readouterr().err
