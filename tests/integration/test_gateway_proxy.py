"""The gateway in front of boards over real mutual TLS: streaming, retries, broken streams, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import openai
import pytest

from gateway.app import GatewayApp, board_context
from gateway.proxy import Proxy
from gateway.routing import Served, Table, Target
from rkfleet import metric_names as names
from rkfleet.api_keys import ApiKeys, parse_api_keys
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics
from rkfleet.ops import Receive, Send, serve_asgi
from tests.support.boards import ScriptedBoard, TestFleet, part, scripted_board, start

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DEADLINE_SECONDS = 20.0


class FixedEndpoints:
    """A routing table that only a test changes."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def not_ready(self) -> str:
        return ""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> TestFleet:
    return TestFleet(tmp_path_factory.mktemp("fleet"))


def table_of(*targets: Target | None) -> Table:
    return Table({"m": Served("m", "default/m", 0, tuple(target for target in targets if target), "no replica is ready")})


@contextlib.asynccontextmanager
async def gateway(
    fleet: TestFleet, *targets: Target | None, keys: ApiKeys = ApiKeys(), endpoints: FixedEndpoints | None = None
) -> AsyncIterator[tuple[str, Metrics]]:
    metrics = Metrics("gateway")
    clock = SystemClock()
    proxy = Proxy(board_context(fleet.gateway_cert, fleet.gateway_key, fleet.ca), clock, metrics)
    app = GatewayApp(endpoints or FixedEndpoints(table_of(*targets)), proxy, keys, clock, metrics)
    async with serve_asgi(app, "127.0.0.1", 0, shutdown_seconds=0.2) as listener:
        try:
            yield listener.url, metrics
        finally:
            proxy.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await test()

    asyncio.run(bounded())


async def answers_hello(board: ScriptedBoard, send: Send, receive: Receive) -> None:
    await start(send)
    await part(send, b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n')
    await part(send, b"data: [DONE]\n\n", more=False)


async def is_full(board: ScriptedBoard, send: Send, receive: Receive) -> None:
    await start(send, 429, b"application/json", ((b"retry-after", b"7"),))
    await part(send, b'{"error":{"message":"full","type":"server_error","param":null,"code":"queue_full"}}', more=False)


async def is_draining(board: ScriptedBoard, send: Send, receive: Receive) -> None:
    await start(send, 503, b"application/json", ((b"retry-after", b"1"),))
    await part(send, b'{"error":{"message":"draining","type":"server_error","param":null,"code":"draining"}}', more=False)


def test_the_first_byte_is_out_before_the_second_token_exists(fleet: TestFleet) -> None:
    """A worker that pauses after its first token does not hold that token back."""

    async def pauses(board: ScriptedBoard, send: Send, receive: Receive) -> None:
        await start(send)
        await part(send, b"data: first\n\n")
        await board.release.wait()
        await part(send, b"data: second\n\n", more=False)

    async def test() -> None:
        async with scripted_board(fleet, "b1", pauses) as board, gateway(fleet, board.target) as (url, _), httpx2.AsyncClient() as http:
            async with http.stream("POST", f"{url}/v1/chat/completions", json=ASK) as answer:
                lines = answer.aiter_lines()
                assert await anext(lines) == "data: first"
                assert not board.release.is_set()
                board.release.set()
                assert [line async for line in lines if line] == ["data: second"]
            assert answer.headers["x-rkfleet-board"] == "b1"
            assert answer.headers["x-rkfleet-replica"] == "default/b1-0"
            assert answer.headers["x-rkfleet-variant"] == "any-q4"

    run(test)


def test_another_replica_is_asked_when_one_is_full_draining_or_gone(fleet: TestFleet) -> None:
    """At most two others are tried before the first byte, and the client sees only the answer."""

    async def test() -> None:
        gone = Target("uid-gone", "default/gone-0", "gone", "v", "https://127.0.0.1:1", "gone.boards.f-test")
        async with (
            scripted_board(fleet, "b1", is_draining) as draining,
            scripted_board(fleet, "b2", answers_hello) as good,
            gateway(fleet, gone, draining.target, good.target) as (url, metrics),
            httpx2.AsyncClient() as http,
        ):
            for _ in range(6):
                answer = await http.post(f"{url}/v1/chat/completions", json=ASK)
                assert answer.status_code == 200
                assert answer.headers["x-rkfleet-board"] == "b2"
            assert good.asked == 6
            assert metrics.counter(names.GATEWAY_RETRIES, model_name="m")._value.get() > 0

    run(test)


def test_the_replica_that_is_asked_instead_may_have_become_ready_while_the_first_one_had_the_request(fleet: TestFleet) -> None:
    """A rollout or a restart is faster than a long answer: what counts is who is ready now, not who was when the request came."""

    async def dies_at_last(board: ScriptedBoard, send: Send, receive: Receive) -> None:
        await board.release.wait()
        await is_draining(board, send, receive)

    async def test() -> None:
        async with (
            scripted_board(fleet, "b1", dies_at_last) as old,
            scripted_board(fleet, "b2", answers_hello) as new,
            httpx2.AsyncClient() as http,
        ):
            endpoints = FixedEndpoints(table_of(old.target))
            async with gateway(fleet, endpoints=endpoints) as (url, _):
                asking = asyncio.create_task(http.post(f"{url}/v1/chat/completions", json=ASK))
                while not old.asked:
                    await SystemClock().sleep(0.01)
                endpoints.table = table_of(old.target, new.target)
                old.release.set()
                answer = await asking
                assert (answer.status_code, answer.headers["x-rkfleet-board"]) == (200, "b2")

    run(test)


def test_when_all_are_full_the_client_gets_429_and_when_to_come_back(fleet: TestFleet) -> None:
    """A board's own refusal is passed on with its Retry-After; no more than three replicas are asked."""

    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            boards = [await stack.enter_async_context(scripted_board(fleet, f"b{n}", is_full)) for n in range(5)]
            url, _ = await stack.enter_async_context(gateway(fleet, *(board.target for board in boards)))
            http = await stack.enter_async_context(httpx2.AsyncClient())
            answer = await http.post(f"{url}/v1/chat/completions", json=ASK)
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "7"
            assert answer.json()["error"]["code"] == "queue_full"
            assert sum(board.asked for board in boards) == 3

    run(test)


def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_asked_again(fleet: TestFleet) -> None:
    """After the first body byte no other replica is tried; the openai client raises the error it is told."""

    async def breaks(board: ScriptedBoard, send: Send, receive: Receive) -> None:
        await start(send)
        await part(send, b'data: {"id":"x","object":"chat.completion.chunk","created":0,"model":"m","choices":[]}\n\n')
        raise ConnectionAbortedError("the worker died")

    async def test() -> None:
        async with (
            scripted_board(fleet, "b1", breaks) as bad,
            scripted_board(fleet, "b2", breaks) as other,
            gateway(fleet, bad.target, other.target) as (url, _),
        ):
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
            with pytest.raises(openai.APIError, match="broke after the answer had begun"):
                async for _ in stream:
                    pass
            await client.close()
            assert bad.asked + other.asked == 1

    run(test)


def test_the_board_is_told_when_the_client_leaves(fleet: TestFleet) -> None:
    """Closing the client's connection closes the one to the board within the deadline."""

    async def waits(board: ScriptedBoard, send: Send, receive: Receive) -> None:
        await start(send)
        await part(send, b"data: first\n\n")
        while (await receive())["type"] != "http.disconnect":
            pass
        board.left.set()

    async def test() -> None:
        async with scripted_board(fleet, "b1", waits) as board, gateway(fleet, board.target) as (url, _), httpx2.AsyncClient() as http:
            async with http.stream("POST", f"{url}/v1/chat/completions", json=ASK) as answer:
                assert await anext(answer.aiter_lines()) == "data: first"
            async with asyncio.timeout(1.0):
                await board.left.wait()

    run(test)


def test_a_board_with_another_boards_certificate_is_not_believed(fleet: TestFleet) -> None:
    """The gateway dials an address and verifies the name: a swapped board gets no prompt."""

    async def test() -> None:
        async with (
            scripted_board(fleet, "b1", answers_hello, certificate_of="b9") as impostor,
            gateway(fleet, impostor.target) as (url, _),
            httpx2.AsyncClient() as http,
        ):
            answer = await http.post(f"{url}/v1/chat/completions", json=ASK)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert impostor.bodies == []

    run(test)


def test_a_caller_without_a_gateway_certificate_does_not_reach_a_board(fleet: TestFleet) -> None:
    """The board's port trusts the gateways' CA only."""

    async def test() -> None:
        async with scripted_board(fleet, "b1", answers_hello) as board:
            assert board.target is not None
            context = board_context(None, None, fleet.ca)
            async with httpx2.AsyncClient(verify=context) as http:
                request = http.build_request(
                    "POST", f"{board.target.url}/v1/chat/completions", json=ASK, extensions={"sni_hostname": board.target.server_name}
                )
                with pytest.raises(httpx2.HTTPError):
                    await http.send(request)
            assert board.asked == 0

    run(test)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"model": 7}', 400, "invalid_json"),
        (b"{}", 400, "missing_required_parameter"),
        (b'{"model": "other"}', 404, "model_not_found"),
        (b'{"model": "m"}', 503, "no_ready_replica"),
    ],
)
def test_refusals_are_openai_errors(fleet: TestFleet, body: bytes, status: int, code: str) -> None:
    """Every refusal has a code that programs can tell apart and a sentence for people."""

    async def test() -> None:
        async with gateway(fleet) as (url, _), httpx2.AsyncClient() as http:
            answer = await http.post(f"{url}/v1/chat/completions", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert ("retry-after" in answer.headers) == (status == 503)

    run(test)


def test_keys_are_asked_for_where_they_are_set(fleet: TestFleet) -> None:
    """With keys configured a request without one of them is refused, with one it is served."""

    async def test() -> None:
        key = "k" * 32
        async with gateway(fleet, keys=parse_api_keys(key, "keys")) as (url, _), httpx2.AsyncClient() as http:
            assert (await http.get(f"{url}/v1/models")).status_code == 401
            answer = await http.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert [model["id"] for model in json.loads(answer.content)["data"]] == ["m"]

    run(test)


def test_connections_to_a_board_are_kept_and_a_closed_one_is_replaced(fleet: TestFleet) -> None:
    """One handshake serves many requests; a board that closed an idle connection, or was started again, costs no request."""

    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(contextlib.AsyncExitStack())
            board = await first.enter_async_context(scripted_board(fleet, "b1", answers_hello))
            url, _ = await stack.enter_async_context(gateway(fleet, board.target))
            http = await stack.enter_async_context(httpx2.AsyncClient())
            for _ in range(3):
                assert (await http.post(f"{url}/v1/chat/completions", json=ASK)).status_code == 200
            assert board.asked == 3
            assert len(board.callers) == 1
            await first.aclose()
            port = int(board.target.url.rpartition(":")[2])
            again = await stack.enter_async_context(scripted_board(fleet, "b1", answers_hello, port=port))
            assert (await http.post(f"{url}/v1/chat/completions", json=ASK)).status_code == 200
            assert again.asked == 1

    run(test)


def test_without_keys_web_pages_are_refused_and_programs_are_not(fleet: TestFleet) -> None:
    """A page could send a plain-text POST to loopback without asking first; with its name pointed here it could read as well."""

    async def test() -> None:
        async with scripted_board(fleet, "a", answers_hello) as board, httpx2.AsyncClient() as client:
            async with gateway(fleet, board.target) as (url, _):
                for headers, code in (
                    ({"origin": "https://evil.example"}, "origin_not_allowed"),
                    ({"host": "evil.example"}, "host_not_allowed"),
                ):
                    refused = await client.post(f"{url}/v1/chat/completions", json=ASK, headers=headers)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (403, code)
                    assert (await client.get(f"{url}/api/tags", headers=headers)).status_code == 403
                assert (await client.post(f"{url}/v1/chat/completions", json=ASK, headers={"host": "localhost:7480"})).status_code == 200
            key = "0123456789abcdef"
            async with gateway(fleet, board.target, keys=parse_api_keys(key, "keys")) as (url, _):
                named = {"host": "gateway.lan", "authorization": f"Bearer {key}"}
                assert (await client.get(f"{url}/v1/models", headers=named)).status_code == 200
            assert board.asked == 1

    run(test)
