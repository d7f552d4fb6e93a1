"""The ops listener and `serve_asgi`: bound ports, TLS with and without client certificates, bounded shutdown."""

import asyncio
import contextlib
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition, Invalid
from rkfleet.ops import ASGIApp, Tls, ops_app, serve_asgi

WAIT_SECONDS = 10


def make_ca(folder: Path, name: str) -> None:
    """Write a self-signed certificate that serves as CA, server and client at once."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
    subprocess.run([*command, *files, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)


def not_found_elsewhere(sentence: str = "") -> ASGIApp:
    return ops_app(lambda: sentence, lambda: b"rkfleet_build_info 1\n")


def test_ops_endpoints_answer_on_the_port_that_was_bound() -> None:
    """Port 0 takes a free one and the listener says which."""

    async def scenario() -> None:
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0) as listener, httpx2.AsyncClient(base_url=listener.url) as client:
            assert listener.port > 0
            assert (await client.get("/healthz")).text == "ok\n"
            assert (await client.get("/readyz")).status_code == 200
            metrics = await client.get("/metrics")
            assert metrics.text == "rkfleet_build_info 1\n"
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert (await client.get("/v1/models")).status_code == 404

    asyncio.run(scenario())


def test_not_ready_is_503_with_the_sentence() -> None:
    """A person who asks learns why."""

    async def scenario() -> None:
        app = not_found_elsewhere("the store is not open")
        async with serve_asgi(app, "127.0.0.1", 0) as listener, httpx2.AsyncClient(base_url=listener.url) as client:
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.text) == (503, "the store is not open\n")
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(scenario())


def test_other_paths_go_to_the_other_application() -> None:
    """The agent serves its local clients on the same listener."""

    async def scenario() -> None:
        app = ops_app(lambda: "", lambda: b"", otherwise=ops_app(lambda: "", lambda: b""))
        async with serve_asgi(app, "127.0.0.1", 0) as listener, httpx2.AsyncClient(base_url=listener.url) as client:
            assert "no /v1/models" in (await client.get("/v1/models")).text

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "begin", [b"GET / HTTP/1.1\r\nhost: h\r\nx: ", b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "]
)
def test_a_head_without_end_is_refused_long_before_memory_ends(begin: bytes) -> None:
    """Nobody was asked for a key yet; trailers are a head as well. Bodies and ordinary heads of one connection are not counted together."""

    async def scenario() -> None:
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0) as listener, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(begin)
            with contextlib.suppress(ConnectionError):
                for _ in range(64):
                    writer.write(bytes(b"a" * (64 << 10)))
                    await writer.drain()
                await reader.read()
                assert reader.at_eof()
            writer.close()
            async with httpx2.AsyncClient(base_url=listener.url) as client:
                for _ in range(3):
                    answer = await client.post("/x", content=bytes(1 << 20), headers={"x": "a" * 30_000})
                    assert answer.status_code == 404

    asyncio.run(scenario())


def test_a_port_in_use_is_named() -> None:
    """The operator learns which address, not an errno."""

    async def scenario() -> None:
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0) as listener:
            with pytest.raises(FailedPrecondition, match=f"cannot listen on 127.0.0.1:{listener.port}"):
                async with serve_asgi(not_found_elsewhere(), "127.0.0.1", listener.port):
                    pass
        with pytest.raises(Invalid, match="cannot be resolved"):
            async with serve_asgi(not_found_elsewhere(), "no.such.host.invalid", 0):
                pass

    asyncio.run(scenario())


def test_a_failure_in_the_block_comes_out_as_it_is() -> None:
    """No exception group around it."""

    async def scenario() -> None:
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0):
            raise Invalid("mine")

    with pytest.raises(Invalid, match="mine"):
        asyncio.run(scenario())


def test_a_stream_that_never_ends_is_cut_at_the_shutdown_limit() -> None:
    """An open watch does not hold the program; its handler gets to clean up."""
    cleaned = []

    async def endless(scope: object, receive: object, send: object) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body", "body": b"x", "more_body": True})  # type: ignore[operator]
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    async def scenario() -> None:
        async with httpx2.AsyncClient() as client:
            async with serve_asgi(endless, "127.0.0.1", 0, shutdown_seconds=0.05) as listener:  # type: ignore[arg-type]
                request = client.build_request("GET", listener.url)
                response = await client.send(request, stream=True)
            await response.aclose()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_SECONDS))
    assert cleaned == [True]


def test_answers_are_dated() -> None:
    """Each answer has the time at which it was made (RFC 9110, 6.6.1)."""

    async def scenario() -> None:
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0) as listener, httpx2.AsyncClient(base_url=listener.url) as client:
            dated = parsedate_to_datetime((await client.get("/healthz")).headers["date"])
            assert abs((SystemClock().now() - dated).total_seconds()) < WAIT_SECONDS

    asyncio.run(scenario())


def test_a_cut_listener_ends_answers_where_they_are() -> None:
    """Cut, it takes nothing more and breaks what is under way, as a machine does that loses its power."""

    async def scenario() -> None:
        begun = asyncio.Event()

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            begun.set()
            while (await receive())["type"] != "http.disconnect":
                pass

        async with serve_asgi(stream, "127.0.0.1", 0) as listener, httpx2.AsyncClient(base_url=listener.url) as client:
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(_broken(client))
                await begun.wait()
                listener.cut()
                assert await asking
            with pytest.raises(httpx2.ConnectError):
                await client.get("/")

    asyncio.run(asyncio.wait_for(scenario(), WAIT_SECONDS))


async def _broken(client: httpx2.AsyncClient) -> bool:
    try:
        await client.get("/")
    except httpx2.TransportError:
        return True
    return False


def test_only_callers_with_a_certificate_of_the_ca_get_in(tmp_path: Path) -> None:
    """TLS itself tells who may call."""
    for name in ("server", "gateway", "stranger"):
        make_ca(tmp_path, name)

    def client(name: str) -> httpx2.AsyncClient:
        context = ssl.create_default_context(cafile=str(tmp_path / "server.crt"))
        if name:
            context.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        return httpx2.AsyncClient(verify=context)

    async def status(name: str, url: str) -> int:
        async with client(name) as caller:
            return (await caller.get(f"{url}/healthz")).status_code

    async def scenario() -> None:
        tls = Tls(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "gateway.crt")
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0, tls=tls) as listener:
            assert listener.url.startswith("https://")
            assert await status("gateway", listener.url) == 200
            for refused in ("stranger", ""):
                with pytest.raises(httpx2.TransportError):
                    await status(refused, listener.url)
        async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0, tls=Tls(tls.cert_file, tls.key_file)) as listener:
            assert await status("", listener.url) == 200

    asyncio.run(scenario())
    with pytest.raises(FailedPrecondition, match=r"none\.key"):
        asyncio.run(open_and_close(Tls(tmp_path / "server.crt", tmp_path / "none.key")))


async def open_and_close(tls: Tls) -> None:
    async with serve_asgi(not_found_elsewhere(), "127.0.0.1", 0, tls=tls):
        pass


def test_an_answer_leaves_as_one_record() -> None:
    """Head and body of a small answer are encrypted and sent together; a head that nothing follows leaves by itself."""

    async def scenario(folder: Path) -> None:
        make_ca(folder, "server")
        told = asyncio.Event()

        async def app(scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            if scope["path"] == "/late":
                await told.wait()
            await send({"type": "http.response.body", "body": b"ok"})

        tls = Tls(folder / "server.crt", folder / "server.key")
        async with serve_asgi(app, "127.0.0.1", 0, tls=tls) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            session = Session(ssl.create_default_context(cafile=str(folder / "server.crt")), reader, writer)
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await session.answer("/first")).endswith(b"ok")  # With it come the tickets of TLS 1.3.
                before = session.records
                assert (await session.answer("/second")).endswith(b"\r\n\r\nok")
                assert session.records - before == 1
                assert (await session.answer("/late", until=b"\r\n\r\n")).endswith(b"\r\n\r\n")
                told.set()
                assert await session.more(b"ok") == b"ok"
            writer.close()
            await writer.wait_closed()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


class Session:
    """A TLS client that counts the records of the server. Source: RFC 8446, section 5.1."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self._reader, self._writer = reader, writer
        self.records = 0

    async def answer(self, path: str, until: bytes = b"ok") -> bytes:
        """Ask, and return what comes until it ends so."""
        await self._done(lambda: self._tls.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()))
        self._writer.write(self._outgoing.read())
        return await self.more(until)

    async def more(self, until: bytes) -> bytes:
        """Return what comes until it ends so."""
        text = b""
        while not text.endswith(until):
            text += await self._done(lambda: self._tls.read(1 << 16))
        return text

    async def _done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._writer.write(self._outgoing.read())
                head = await self._reader.readexactly(5)
                self._incoming.write(head + await self._reader.readexactly(int.from_bytes(head[3:])))
                self.records += 1
