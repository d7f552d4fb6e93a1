"""What the gateway adds between clients and boards: names with adapters, Ollama's paths, tenants, request ids, limits on guessing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import ollama
import openai
import pytest

from gateway.app import GatewayApp, board_context
from gateway.proxy import Proxy
from gateway.routing import Served, Table, Target
from rkfleet.api_keys import ApiKeys, key_line, parse_api_keys, tenant_of
from rkfleet.cli.main import app as cli
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import Receive, Send, serve_asgi
from tests.support.boards import ScriptedBoard, TestFleet, part, scripted_board, start

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KEY = "k" * 32
NDJSON = b"application/x-ndjson"


class FixedEndpoints:
    def __init__(self, table: Table) -> None:
        self.table = table


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> TestFleet:
    return TestFleet(tmp_path_factory.mktemp("fleet"))


@contextlib.asynccontextmanager
async def gateway(fleet: TestFleet, target: Target | None, keys: ApiKeys = ApiKeys(), **also: Target | None) -> AsyncIterator[str]:
    served = {name: Served(name, f"default/{name}", 0, (one,) if one else ()) for name, one in {"m": target, **also}.items()}
    async with gateway_of(fleet, Table(served), keys) as url:
        yield url


@contextlib.asynccontextmanager
async def gateway_of(fleet: TestFleet, table: Table, keys: ApiKeys = ApiKeys()) -> AsyncIterator[str]:
    clock, metrics = SystemClock(), Metrics("gateway")
    proxy = Proxy(board_context(fleet.gateway_cert, fleet.gateway_key, fleet.ca), clock, metrics)
    app = GatewayApp(FixedEndpoints(table), proxy, keys, clock, metrics)
    async with serve_asgi(app, "127.0.0.1", 0, shutdown_seconds=0.2) as listener:
        try:
            yield listener.url
        finally:
            proxy.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def answers(board: ScriptedBoard, send: Send, receive: Receive) -> None:
    await start(send, 200, b"application/json", ((b"x-rkfleet-ignored", b"top_k"), (b"x-request-id", board.headers[-1][b"x-request-id"])))
    await part(send, b"{}", more=False)


async def breaks(board: ScriptedBoard, send: Send, receive: Receive) -> None:
    await start(send, 200, NDJSON)
    await part(send, b'{"model":"m","message":{"role":"assistant","content":"one"},"done":false}\n')
    raise RuntimeError("the board lost power")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/logits", "/api/chat", "/api/embed", "/api/show"])
def test_a_board_is_asked_for_its_adapter_on_the_path_of_the_client(fleet: TestFleet, path: str) -> None:
    async def test() -> None:
        async with scripted_board(fleet, "b1", answers) as board, gateway(fleet, board.target) as url, httpx2.AsyncClient() as http:
            answer = await http.post(url + path, json={**ASK, "model": "m:sql"})
            assert answer.status_code == 200
            assert answer.headers["x-rkfleet-ignored"] == "top_k"
            assert board.paths == [path]
            assert json.loads(board.bodies[0])["model"] == "m:sql"

    run(test)


def test_an_exact_name_comes_before_an_adapter(fleet: TestFleet) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            plain = await stack.enter_async_context(scripted_board(fleet, "b1", answers))
            exact = await stack.enter_async_context(scripted_board(fleet, "b2", answers))
            url = await stack.enter_async_context(gateway(fleet, plain.target, **{"m:sql": exact.target}))
            http = await stack.enter_async_context(httpx2.AsyncClient())
            for name in ("m:sql", "m:latest", "m:sql:latest"):
                assert (await http.post(f"{url}/v1/chat/completions", json={**ASK, "model": name})).status_code == 200
            unknown = await http.post(f"{url}/api/chat", json={**ASK, "model": "other:sql"})
            assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
            assert (plain.asked, exact.asked) == (1, 2)

    run(test)


def test_an_adapter_is_looked_for_on_every_replica_and_a_model_on_one(fleet: TestFleet) -> None:
    """Not every variant brings it; what nobody has is 404 and not 503, and what is asked without an adapter is asked once."""

    async def lacks(_board: ScriptedBoard, send: Send, _receive: Receive) -> None:
        await start(send, 404, b"application/json")
        await part(send, b'{"error":{"code":"model_not_found"}}', more=False)

    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            without = await stack.enter_async_context(scripted_board(fleet, "b1", lacks))
            has = await stack.enter_async_context(scripted_board(fleet, "b2", answers))
            url = await stack.enter_async_context(gateway(fleet, without.target))
            http = await stack.enter_async_context(httpx2.AsyncClient())
            assert (await http.post(f"{url}/v1/chat/completions", json={**ASK, "model": "m:sql"})).status_code == 404
            served = Served("m", "default/m", 0, (without.target, has.target))
            url = await stack.enter_async_context(gateway_of(fleet, Table({"m": served})))
            for _ in range(4):
                assert (await http.post(f"{url}/v1/chat/completions", json={**ASK, "model": "m:sql"})).status_code == 200
            before = without.asked + has.asked
            for name in ("m", "m:latest"):
                await http.post(f"{url}/v1/chat/completions", json={**ASK, "model": name})
            assert without.asked + has.asked == before + 2

    run(test)


def test_a_board_is_told_whose_request_it_is_by_the_gateway_alone(fleet: TestFleet) -> None:
    keys = parse_api_keys(key_line("alice", KEY), "keys")
    mine = {"x-rkfleet-tenant": "0" * 32, "x-request-id": "id-1", "x-rkfleet-deadline-seconds": "9", "authorization": f"Bearer {KEY}"}

    async def test() -> None:
        async with scripted_board(fleet, "b1", answers) as board, httpx2.AsyncClient() as http:
            async with gateway(fleet, board.target, keys) as url:
                answer = await http.post(f"{url}/v1/chat/completions", json=ASK, headers=mine)
            async with gateway(fleet, board.target) as url:
                await http.post(f"{url}/v1/chat/completions", json=ASK, headers={"x-rkfleet-tenant": "0" * 32, "x-request-id": "a b"})
        keyed, free = board.headers
        assert keyed[b"x-rkfleet-tenant"] == tenant_of("gateway", "alice").encode()
        assert (keyed[b"x-request-id"], answer.headers["x-request-id"]) == (b"id-1", "id-1")
        assert keyed[b"x-rkfleet-deadline-seconds"] == b"9"
        assert b"authorization" not in keyed
        assert free[b"x-rkfleet-tenant"] not in (keyed[b"x-rkfleet-tenant"], b"0" * 32)
        assert free[b"x-request-id"].startswith(b"req-")

    run(test)


def test_ollamas_client_talks_to_a_fleet(fleet: TestFleet) -> None:
    async def test() -> None:
        async with (
            scripted_board(fleet, "b1", breaks) as board,
            gateway(fleet, board.target) as url,
            ollama.AsyncClient(host=url) as client,
        ):
            assert [model.model for model in (await client.list()).models] == ["m:latest"]
            stream = aiter(await client.chat(**ASK, stream=True))
            assert (await anext(stream)).message.content == "one"
            with pytest.raises(ollama.ResponseError, match="broke after the answer had begun"):
                await anext(stream)
            with pytest.raises(ollama.ResponseError, match="not served here; served are: m"):
                await client.chat(model="other", messages=ASK["messages"])
            async with httpx2.AsyncClient() as http:
                assert (await http.get(url)).text == "Ollama is running"
                assert (await http.get(f"{url}/api/version")).json()["version"]

    run(test)


def test_guessing_keys_has_a_limit_and_each_dialect_is_told_in_its_words(fleet: TestFleet) -> None:
    keys = parse_api_keys(key_line("alice", KEY), "keys")

    async def test() -> None:
        async with gateway(fleet, None, keys) as url, httpx2.AsyncClient() as http:
            answer = await http.get(f"{url}/api/tags")
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
            statuses = [(await http.get(f"{url}/v1/models", headers={"authorization": "Bearer x"})).status_code for _ in range(11)]
            assert statuses == [401] * 9 + [429] * 2
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
                with pytest.raises(openai.RateLimitError):
                    await client.models.list()

    run(test)


def test_keys_are_made_by_command_and_only_their_hashes_are_kept(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    file = tmp_path / "keys"
    made = [CliRunner().invoke(cli, ["gateway-keys", "add", str(file), "--name", name]).stdout.strip() for name in ("alice", "bob")]
    keys = parse_api_keys(file.read_text(), "keys")
    assert [keys.name_of(f"Bearer {key}".encode()) for key in made] == ["alice", "bob"]
    assert not any(key in file.read_text() for key in made)
    assert CliRunner().invoke(cli, ["gateway-keys", "add", str(file), "--name", "not a name"]).exit_code != 0
