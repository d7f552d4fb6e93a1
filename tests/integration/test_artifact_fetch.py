"""Fetching from a real registry over TLS: killed, resumed, refused, on a full disk, damaged on the way and at rest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.artifacts.cache import Cache, DigestMismatch, DiskFull
from agent.artifacts.fetch import Fetcher
from controller.registry.app import Running
from rkfleet.assignment import AssignedFile
from rkfleet.errors import FailedPrecondition, NotFound, PermissionDenied, Unauthenticated, Unavailable
from rkfleet.metrics import Metrics
from rkfleet.ops import Tls, serve_asgi
from rkfleet.registry_client import RegistryClient
from rkfleet.session import Grant
from tests.support.disk import LimitedDisk
from tests.support.registry import REPOSITORY, RegistryWorld, sent_bytes

CHUNK = 256 << 10
SIZE = 10 * CHUNK + 123


@dataclass
class Scene:
    """A registry that holds one file, and an agent's cache and fetcher."""

    world: RegistryWorld
    running: Running
    client: RegistryClient
    cache: Cache
    fetcher: Fetcher
    disk: LimitedDisk
    file: AssignedFile
    body: bytes

    def grant(self, token: str = "", source: str = "") -> Grant:
        source = source or f"{self.world.url}/v2/{REPOSITORY}"
        return Grant(request_id=1, sources=(source,), token=token or self.world.board_token(REPOSITORY, self.file.digest))

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.world.root / "agent" / "partial").iterdir()]


@contextlib.asynccontextmanager
async def scene(root: Path) -> AsyncIterator[Scene]:
    world = RegistryWorld(root)
    body = random.Random(7).randbytes(SIZE)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    disk, metrics = LimitedDisk(), Metrics("agent")
    async with world.running() as (running, client):
        await client.push_blob(REPOSITORY, digest, body)
        cache = Cache(root / "agent", 0, disk, metrics)
        fetcher = Fetcher(cache, world.tls, disk, metrics, CHUNK)
        file = AssignedFile(path="model.gguf", digest=digest, size_bytes=SIZE)
        yield Scene(world, running, client, cache, fetcher, disk, file, body)


def test_a_file_arrives_whole_once_and_every_byte_is_sent_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            seen: list[tuple[int, int]] = []
            await s.fetcher.fetch([s.file], s.grant(), lambda done, total: seen.append((done, total)))
            path = await s.cache.verify(s.file.digest)
            assert path.read_bytes() == s.body
            assert sent_bytes(s.running) == SIZE
            assert seen == sorted(seen)
            assert (seen[0], seen[1], seen[-1]) == ((0, SIZE), (CHUNK, SIZE), (SIZE, SIZE))
            assert s.leftovers() == []
            await s.fetcher.fetch([s.file], s.grant())
            assert sent_bytes(s.running) == SIZE

    asyncio.run(body())


@pytest.mark.processes
@pytest.mark.parametrize("seed", [1, 2])
def test_a_pull_killed_half_way_fetches_at_most_one_chunk_again(tmp_path: Path, seed: int) -> None:
    """SIGKILL to a real process at a seeded moment around the half; bytes are counted at the server."""
    moment = random.Random(seed)

    async def body() -> None:
        async with scene(tmp_path) as s:
            arguments = (str(tmp_path / "agent"), str(s.world.ca_file), s.grant().sources[0], s.file.digest, str(SIZE), str(CHUNK))
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.fetch_child", *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert child.stdin
            assert child.stdout
            child.stdin.write(f"{s.grant().token}\n".encode())
            until = moment.uniform(0.4, 0.6) * SIZE
            while int(await child.stdout.readline() or SIZE) < until:
                pass
            child.kill()
            await child.wait()
            before = sent_bytes(s.running)
            assert 0.3 * SIZE < before < SIZE
            await s.fetcher.fetch([s.file], s.grant())
            assert (await s.cache.verify(s.file.digest)).read_bytes() == s.body
            assert sent_bytes(s.running) <= SIZE + CHUNK

    asyncio.run(body())


def test_a_restart_of_the_registry_costs_at_most_one_chunk(tmp_path: Path) -> None:
    async def body() -> None:
        world = RegistryWorld(tmp_path)
        data = random.Random(8).randbytes(SIZE)
        file = AssignedFile(path="m", digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size_bytes=SIZE)
        grant = Grant(request_id=1, sources=(f"{world.url}/v2/{REPOSITORY}",), token=world.board_token(REPOSITORY, file.digest))
        metrics, disk = Metrics("agent"), LimitedDisk()
        cache = Cache(tmp_path / "agent", 0, disk, metrics)
        fetcher = Fetcher(cache, world.tls, disk, metrics, CHUNK)
        async with world.running() as (first, client):
            await client.push_blob(REPOSITORY, file.digest, data)
            disk.room = 5 * CHUNK  # stops the pull in its middle, record lines included
            with pytest.raises(DiskFull):
                await fetcher.fetch([file], grant)
            disk.room = None
            sent = sent_bytes(first)
        with pytest.raises(Unavailable, match=r"broke off: .*Connect call failed"):
            await fetcher.fetch([file], grant)
        async with world.registry() as second:
            await fetcher.fetch([file], grant)
            assert sent + sent_bytes(second) <= SIZE + CHUNK
        assert (await cache.verify(file.digest)).read_bytes() == data

    asyncio.run(body())


def test_a_full_disk_is_an_error_of_its_own_and_the_pull_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            s.disk.room = 4 * CHUNK
            with pytest.raises(DiskFull, match=f"the disk became full while artifact {s.file.digest} was fetched"):
                await s.fetcher.fetch([s.file], s.grant())
            s.disk.free = 1000
            with pytest.raises(DiskFull, match="1000 are free"):
                await s.fetcher.fetch([s.file], s.grant())
            s.disk.room = s.disk.free = None
            await s.fetcher.fetch([s.file], s.grant())
            assert (await s.cache.verify(s.file.digest)).read_bytes() == s.body
            assert sent_bytes(s.running) <= SIZE + CHUNK

    asyncio.run(body())


def test_wrong_bytes_never_enter_the_cache(tmp_path: Path) -> None:
    """The registry's own disk rots: the pull ends in DigestMismatch, and works again once the blob is right."""

    async def body() -> None:
        async with scene(tmp_path) as s:
            blob = next(path for path in s.world.blobs.rglob(s.file.digest.removeprefix("sha256:")))
            blob.chmod(0o600)
            blob.write_bytes(s.body[:99] + bytes([s.body[99] ^ 1]) + s.body[100:])
            with pytest.raises(DigestMismatch, match="it was thrown away"):
                await s.fetcher.fetch([s.file], s.grant())
            assert not s.cache.holds(s.file.digest, SIZE)
            assert s.leftovers() == []
            blob.write_bytes(s.body)
            await s.fetcher.fetch([s.file], s.grant())
            assert s.cache.holds(s.file.digest, SIZE)

    asyncio.run(body())


def test_each_refusal_has_its_error(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            ended = s.world.board_token(REPOSITORY, s.file.digest, seconds=-60)
            with pytest.raises(Unauthenticated, match="token ended"):
                await s.fetcher.fetch([s.file], s.grant(ended))
            other = s.world.board_token(REPOSITORY, f"sha256:{3:064x}")
            with pytest.raises(PermissionDenied, match="does not open pull"):
                await s.fetcher.fetch([s.file], s.grant(other))
            absent = AssignedFile(path="m", digest=f"sha256:{4:064x}", size_bytes=5)
            with pytest.raises(NotFound, match="has no blob"):
                await s.fetcher.fetch([absent], s.grant(s.world.board_token(REPOSITORY, absent.digest)))
            longer = AssignedFile(path="m", digest=s.file.digest, size_bytes=SIZE + 1)
            with pytest.raises(FailedPrecondition, match="wanted are bytes"):
                await s.fetcher.fetch([longer], s.grant())
            with pytest.raises(PermissionDenied, match="belongs to no replica"):
                await s.fetcher.fetch([s.file], Grant(request_id=1, refusal="it belongs to no replica"))
            with pytest.raises(Unavailable):
                await s.fetcher.fetch([s.file], s.grant(source="https://127.0.0.1:9/v2/x"))

    asyncio.run(body())


def test_the_next_source_takes_over_in_the_middle(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            answers = iter(range(3))

            async def three_chunks(request: Request) -> Response:
                if next(answers, None) is None:
                    return Response("worn out", 500)
                first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
                return Response(s.body[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{SIZE}"})

            async with serve_asgi(Starlette(routes=[Route("/blobs/{digest}", three_chunks)]), "127.0.0.1", 0, tls=_tls(s.world)) as peer:
                grant = Grant(request_id=1, sources=(peer.url, s.grant().sources[0]), token=s.grant().token)
                await s.fetcher.fetch([s.file], grant)
            assert (await s.cache.verify(s.file.digest)).read_bytes() == s.body
            assert sent_bytes(s.running) == SIZE - 3 * CHUNK

    asyncio.run(body())


def test_a_server_that_ignores_ranges_still_serves(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            s.disk.room = 3 * CHUNK
            with pytest.raises(DiskFull):
                await s.fetcher.fetch([s.file], s.grant())
            s.disk.room = None

            async def everything(_request: Request) -> Response:
                return Response(s.body)

            async with serve_asgi(Starlette(routes=[Route("/blobs/{digest}", everything)]), "127.0.0.1", 0, tls=_tls(s.world)) as plain:
                await s.fetcher.fetch([s.file], s.grant(source=plain.url))
            assert (await s.cache.verify(s.file.digest)).read_bytes() == s.body

    asyncio.run(body())


def test_a_cancelled_fetch_goes_on_later(tmp_path: Path) -> None:
    async def body() -> None:
        async with scene(tmp_path) as s:
            half = asyncio.Event()
            fetch = asyncio.ensure_future(
                s.fetcher.fetch([s.file], s.grant(), lambda done, total: half.set() if done > total // 2 else None)
            )
            await half.wait()
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            await s.fetcher.fetch([s.file], s.grant())
            assert (await s.cache.verify(s.file.digest)).read_bytes() == s.body
            assert sent_bytes(s.running) <= SIZE + CHUNK

    asyncio.run(body())


def _tls(world: RegistryWorld) -> Tls:
    certificate, key = world.pki.server_files("registry")
    return Tls(certificate, key)
