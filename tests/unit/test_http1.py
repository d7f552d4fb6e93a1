"""The small HTTP client, against a server that writes bytes as the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from rkfleet.http1 import Connection, ConnectionLost

OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers each request of a connection with the next script: bytes to write; None closes."""

    def __init__(self, *scripts: bytes | None) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                script = self.scripts.pop(0) if self.scripts else None
                if script is None:
                    break
                writer.write(script)
                await writer.drain()
        writer.transport.abort()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(10):
                yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()


async def ask(connection: Connection, seconds_max: float = 5.0) -> tuple[int, list[bytes]]:
    head = await connection.ask("POST", "/x", [(b"X-Name", b"value")], b"body", seconds_max=seconds_max)
    return head.status, [piece async for piece in connection.pieces(seconds_max=seconds_max)]


@contextlib.asynccontextmanager
async def connected(*scripts: bytes | None) -> AsyncIterator[tuple[Connection, Server]]:
    async with Server(*scripts).run() as server:
        connection = await Connection.open("127.0.0.1", server.port, seconds_max=5.0)
        try:
            yield connection, server
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        (b"Content-Length: 5\r\n\r\nhello", [b"hello"]),
        (b"Content-Length: 0\r\n\r\n", []),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n", [b"abc", b"de"]),
        (b"transfer-encoding: Chunked\r\n\r\n0\r\n\r\n", []),
    ],
)
def test_a_body_comes_in_pieces_and_leaves_the_connection_usable(answer: bytes, pieces: list[bytes]) -> None:
    async def scenario() -> None:
        async with connected(OK + answer, OK + answer) as (connection, server):
            assert await ask(connection) == (200, pieces)
            assert connection.reusable
            assert await ask(connection) == (200, pieces)
            assert server.requests[1] == (
                f"POST /x HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 4\r\nX-Name: value\r\n\r\nbody".encode()
            )

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"x" * (1 << 18),
        OK + b"Content-Length: 9\r\n\r\nhello",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    ],
)
def test_an_answer_that_breaks_off_or_is_no_http_is_a_lost_connection(answer: bytes | None) -> None:
    async def scenario() -> None:
        async with connected(answer) as (connection, _):
            with pytest.raises(ConnectionLost):
                await ask(connection, seconds_max=0.2)
            assert not connection.reusable

    asyncio.run(scenario())


def test_nobody_at_the_address_is_a_lost_connection() -> None:
    async def scenario() -> None:
        async with Server().run() as server:
            port = server.port
        with pytest.raises(ConnectionLost) as caught:
            await Connection.open("127.0.0.1", port, seconds_max=5.0)
        assert f"127.0.0.1:{port}" in caught.value.message

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["asked to close", "not read", "closed by the other side"])
def test_a_connection_is_used_again_only_when_that_is_safe(ending: str) -> None:
    async def scenario() -> None:
        close = b"Connection: close\r\n" if ending == "asked to close" else b""
        async with connected(OK + close + b"Content-Length: 5\r\n\r\nhello") as (connection, _):
            if ending == "not read":
                await connection.ask("POST", "/x", [], b"", seconds_max=5.0)
            else:
                await ask(connection)
            if ending == "closed by the other side":
                with pytest.raises(ConnectionLost):
                    await ask(connection)
            assert not connection.reusable

    asyncio.run(scenario())
