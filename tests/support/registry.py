"""A real registry over TLS with real keys, and beside it the real token service, as the controller would run it."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from starlette.applications import Starlette

from controller.api.registry_tokens import registry_routes
from controller.registry.app import Running, serve_registry
from controller.registry.config import Config
from controller.trust.pki import Pki
from controller.trust.pull_tokens import Access, Claims, TokenSigner, parse_scope
from controller.trust.tokens import Tokens
from rkfleet.cli.push import ApiTokens
from rkfleet.client import ApiClient, Cluster
from rkfleet.clock import SystemClock
from rkfleet.metric_names import REGISTRY_RECEIVED_BYTES, REGISTRY_SENT_BYTES, Metric
from rkfleet.ops import Listener, Tls, serve_asgi
from rkfleet.ports import free_port
from rkfleet.registry_client import Challenge, RegistryClient
from tests.support.disk import LimitedDisk

REPOSITORY = "default/tiny"


class SignedHere:
    """Gives whatever is asked for."""

    def __init__(self, signer: TokenSigner) -> None:
        self._signer = signer

    async def token(self, challenge: Challenge) -> str:
        return self._signer.sign(Claims("admin", parse_scope(challenge.scope)))


@dataclass
class RegistryWorld:
    """Everything a test of bytes needs; `start` may be called again after the block of an earlier one has ended."""

    root: Path
    disk: LimitedDisk = field(default_factory=LimitedDisk)
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.pki = Pki.ensure(self.root / "pki", ["127.0.0.1"], self.clock.now(), "test-fleet")
        self.tokens = Tokens(self.root / "tokens.json", self.clock, os.urandom)
        self.admin_token = self.tokens.issue_api_token("admin", "admin")
        self.signer = TokenSigner((self.pki.directory / "registry-signing.key").read_bytes(), self.clock)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = self.root / "ca.pem"
        self.ca_file.write_text(self.pki.ca_pem("servers"))
        self.blobs = self.root / "registry" / "blobs"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)

    @contextlib.asynccontextmanager
    async def token_service(self) -> AsyncIterator[Listener]:
        app = Starlette(routes=registry_routes(self.tokens.identify, self.signer, self.url, self.clock))
        certificate, key = self.pki.server_files("controller")
        async with serve_asgi(app, "127.0.0.1", 0, tls=Tls(certificate, key)) as listener:
            yield listener

    @contextlib.asynccontextmanager
    async def registry(self, realm: str = "https://127.0.0.1:9/token") -> AsyncIterator[Running]:
        config = Config(
            data_dir=self.root / "registry",
            pki_dir=self.pki.directory,
            host="127.0.0.1",
            port=self.port,
            ops_host="127.0.0.1",
            ops_port=0,
            token_realm=realm,
            reserve_bytes=self.reserve_bytes,
            lifeline_fd=None,
            log_level="info",
        )
        async with serve_registry(config, self.clock, self.disk) as running:
            yield running

    def client(self, **limits: object) -> RegistryClient:
        """A client whose tokens are signed here, for tests that are not about the token service."""
        return RegistryClient(self.url, self.tls, SignedHere(self.signer), self.clock, **limits)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def caller(self, api: Listener, token: str) -> AsyncIterator[RegistryClient]:
        """A client that asks the token service as the holder of `token`."""
        cluster = Cluster(api.url, self.ca_file.read_text(), token)
        async with ApiClient(cluster, self.clock) as caller, RegistryClient(self.url, self.tls, ApiTokens(caller), self.clock) as client:
            yield client

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Running, RegistryClient]]:
        """The registry, and a client that may do everything."""
        async with self.registry() as running, self.client() as client:
            yield running, client

    def registry_http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(verify=self.tls, trust_env=False)

    def board_token(self, repository: str, *digests: str, seconds: int = 900) -> str:
        return self.signer.sign(Claims("board:b1", (Access(repository, ("pull",)),), frozenset(digests)), seconds)

    def push_token(self, repository: str) -> str:
        return self.signer.sign(Claims("admin", (Access(repository, ("pull", "push")),)))


def sent_bytes(running: Running) -> float:
    """Bytes of blobs that the registry has handed out."""
    return _total(running, REGISTRY_SENT_BYTES)


def received_bytes(running: Running) -> float:
    """Bytes of uploads that the registry has written."""
    return _total(running, REGISTRY_RECEIVED_BYTES)


def _total(running: Running, entry: Metric) -> float:
    samples = (sample for metric in running.metrics.counter(entry).collect() for sample in metric.samples)
    return next(sample.value for sample in samples if sample.name.endswith("_total"))
