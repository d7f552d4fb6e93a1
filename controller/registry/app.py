"""The registry, wired: the only file of this package that makes clocks, ids, disks and listeners.

A program of its own (`python -m controller.registry`), because bytes of models must not hold up the loop that decides. It shares with the
controller the directory of keys and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from controller.registry.access import Gate
from controller.registry.blobs import BlobStore
from controller.registry.config import Config
from controller.registry.repositories import Repositories
from controller.registry.routes import create_registry
from controller.registry.uploads import Uploads
from controller.trust.pull_tokens import TokenVerifier
from controller.trust.served import follow_certificate
from rkfleet.clock import Clock, SystemClock
from rkfleet.disk import Disk, SystemDisk, in_thread
from rkfleet.errors import FailedPrecondition
from rkfleet.metric_names import REGISTRY_FREE_BYTES, REGISTRY_UPLOADS
from rkfleet.metrics import Metrics
from rkfleet.ops import Listener, Tls, ops_app, serve_asgi
from rkfleet.process import lock_data_dir, run_until_stopped

__all__ = ["Running", "run", "serve_registry"]

EXPIRY_PERIOD_SECONDS: Final = 600.0
CERTIFICATE: Final = "registry.crt"

_log = logging.getLogger(__name__)


class Running(msgspec.Struct, frozen=True):
    """A registry that serves: where its API and its ops endpoints listen."""

    api: Listener
    ops: Listener
    uploads: Uploads
    metrics: Metrics


async def run(config: Config) -> None:
    """Serve until a signal or the end of the lifeline."""
    await run_until_stopped(_work(config, SystemClock(), SystemDisk()), config.lifeline_fd)


async def _work(config: Config, clock: Clock, disk: Disk) -> None:
    with lock_data_dir(config.data_dir):
        async with serve_registry(config, clock, disk) as running, asyncio.TaskGroup() as tasks:
            _log.info("serving", extra={"api": running.api.url, "ops": running.ops.url})
            certificate = config.pki_dir / CERTIFICATE
            tasks.create_task(follow_certificate(certificate, "registry", running.api.reload, clock=clock, metrics=running.metrics))
            tasks.create_task(_expire(running.uploads, clock))


async def _expire(uploads: Uploads, clock: Clock) -> None:
    """Remove uploads that nobody continues, until cancelled."""
    while True:
        removed = await in_thread(uploads.expire, clock.now())
        if removed:
            _log.info("removed uploads that nobody continued", extra={"count": removed})
        await clock.sleep(EXPIRY_PERIOD_SECONDS)


@contextlib.asynccontextmanager
async def serve_registry(config: Config, clock: Clock, disk: Disk) -> AsyncIterator[Running]:
    """Serve the API over TLS and the ops endpoints for as long as the block runs.

    Raises:
        FailedPrecondition: A key or certificate is missing, or a port is taken.
    """
    verifier = TokenVerifier(_read(config.pki_dir / "registry-signing.pub"), clock)
    blobs = BlobStore(config.data_dir / "blobs", disk, config.reserve_bytes)
    uploads = Uploads(config.data_dir / "uploads", blobs, disk, lambda: secrets.token_hex(16))
    repositories = Repositories(config.data_dir / "repositories", blobs, disk, uploads.scratch)
    tls = Tls(config.pki_dir / CERTIFICATE, config.pki_dir / "registry.key")
    metrics = Metrics("registry")

    def text() -> bytes:
        metrics.gauge(REGISTRY_UPLOADS).set(uploads.count())
        metrics.gauge(REGISTRY_FREE_BYTES).set(blobs.free_bytes())
        return metrics.text()

    app = create_registry(blobs, uploads, repositories, Gate(verifier, config.token_realm), metrics)
    async with (
        serve_asgi(app, config.host, config.port, tls=tls) as api,
        serve_asgi(ops_app(lambda: "", text), config.ops_host, config.ops_port) as ops,
    ):
        try:
            yield Running(api, ops, uploads, metrics)
        finally:
            uploads.close()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be read ({error.strerror}); the controller makes it at its first start") from error
