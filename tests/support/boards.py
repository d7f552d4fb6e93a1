"""Boards that answer over real mutual TLS, with scripted workers behind them, for tests of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.trust.pki import Pki, read_request
from gateway.routing import Target
from rkfleet.enrolment import serving_name
from rkfleet.ops import Receive, Send, Tls, serve_asgi

Script = Callable[["ScriptedBoard", Send, Receive], Awaitable[None]]

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class TestFleet:
    """Certificates of one fleet in a folder."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Pki.ensure(folder / "pki", ["127.0.0.1"], NOW, "f-test")
        self.ca = folder / "servers-ca.pem"
        self.ca.write_text(self.pki.ca_pem("servers"))
        self.gateways_ca = folder / "gateways-ca.pem"
        self.gateways_ca.write_text(self.pki.ca_pem("gateways"))
        self.gateway_key, csr = _key_and_request(folder / "gateway.key")
        self.gateway_cert = folder / "gateway.pem"
        self.gateway_cert.write_text(self.pki.issue_gateway("gateway", read_request(csr), NOW))

    def board_tls(self, name: str) -> Tls:
        key, csr = _key_and_request(self.folder / f"{name}.key")
        cert = self.folder / f"{name}.pem"
        cert.write_text(self.pki.issue_board(name, read_request(csr), NOW).serving)
        return Tls(cert, key, self.gateways_ca)


def _key_and_request(path: Path) -> tuple[Path, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return path, request.public_bytes(encoding).decode()


class ScriptedBoard:
    """One board; `asked` counts its requests, `left` is set when a client left in the middle."""

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.asked = 0
        self.callers: set[object] = set()
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.left = asyncio.Event()
        self.release = asyncio.Event()
        self._script = script
        self.target: Target | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.asked += 1
        self.callers.add(tuple(scope["client"]))
        self.paths.append(scope["path"])
        self.headers.append(dict(scope["headers"]))
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await self._script(self, send, receive)


@contextlib.asynccontextmanager
async def scripted_board(
    fleet: TestFleet, name: str, script: Script, *, certificate_of: str = "", port: int = 0
) -> AsyncIterator[ScriptedBoard]:
    """Serve a board; `certificate_of` gives it the certificate of another."""
    board = ScriptedBoard(name, script)
    async with serve_asgi(board, "127.0.0.1", port, tls=fleet.board_tls(certificate_of or name), shutdown_seconds=0.2) as listener:
        board.target = Target(f"uid-{name}", f"default/{name}-0", name, "any-q4", listener.url, serving_name(name, fleet.pki.fleet_id))
        yield board


async def start(
    send: Send, status: int = 200, content_type: bytes = b"text/event-stream", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]})


async def part(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
