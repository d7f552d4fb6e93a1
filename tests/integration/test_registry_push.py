"""Pushing to a real registry over TLS: whole, chunked, interrupted, refused, on a full disk, and with the real oras."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from rkfleet.disk import PIECE_BYTES
from rkfleet.errors import Invalid, PermissionDenied, Unauthenticated, Unavailable
from rkfleet.packaging import CONFIG_MEDIA_TYPE, MANIFEST_MEDIA_TYPE, blob_of
from rkfleet.registry_client import _Chunk
from tests.support.registry import REPOSITORY, RegistryWorld, received_bytes

CHUNK = 64 << 10


@pytest.fixture
def world(tmp_path: Path) -> RegistryWorld:
    return RegistryWorld(tmp_path)


def make_file(directory: Path, size: int) -> tuple[Path, str]:
    body = os.urandom(size)
    file = directory / "model.gguf"
    file.write_bytes(body)
    return file, f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_a_pushed_file_is_stored_once_and_a_second_push_sends_nothing(world: RegistryWorld, tmp_path: Path) -> None:
    file, digest = make_file(tmp_path, 5 * CHUNK + 17)

    async def body() -> None:
        async with world.registry() as running, world.client(chunk_bytes=CHUNK) as client:
            seen: list[int] = []
            assert await client.push_blob(REPOSITORY, digest, file, seen.append)
            assert seen[-1] == file.stat().st_size
            assert len(seen) > 5
            assert not await client.push_blob(REPOSITORY, digest, file)
            assert await client.find_blob(REPOSITORY, digest) == file.stat().st_size
            assert running.uploads.count() == 0
            assert await client.missing_blobs(REPOSITORY, [digest, f"sha256:{0:064x}"]) == {f"sha256:{0:064x}"}
            assert await client.missing_blobs("default/other", [digest]) == {digest}

    asyncio.run(body())
    stored = [path for path in world.blobs.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in stored] == [file.read_bytes()]


def test_a_push_goes_on_where_it_was_when_the_registry_restarts(world: RegistryWorld, tmp_path: Path) -> None:
    """The second registry knows the upload only by its file, hashes that anew, and takes the rest."""
    file, digest = make_file(tmp_path, 8 * CHUNK)
    world.disk.room = 4 * CHUNK + 5

    async def body() -> None:
        async with world.client(chunk_bytes=CHUNK) as client, asyncio.TaskGroup() as tasks:
            half = asyncio.Event()
            async with world.registry():
                push = tasks.create_task(client.push_blob(REPOSITORY, digest, file, lambda sent: half.set() if sent == 4 * CHUNK else None))
                await half.wait()
            assert [path.stat().st_size for path in (world.root / "registry" / "uploads").iterdir()] == [4 * CHUNK + 5]
            world.disk.room = None
            async with world.registry() as running:
                assert await push
                assert received_bytes(running) == 4 * CHUNK - 5
                assert await client.find_blob(REPOSITORY, digest) == 8 * CHUNK

    asyncio.run(body())


def test_bytes_with_another_digest_are_refused_and_leave_nothing(world: RegistryWorld, tmp_path: Path) -> None:
    file, digest = make_file(tmp_path, CHUNK)
    wrong = f"sha256:{1:064x}"

    async def body() -> None:
        async with world.running() as (running, client):
            with pytest.raises(Invalid, match=f"have digest {digest}, promised was {wrong}"):
                await client.push_blob(REPOSITORY, wrong, file)
            assert running.uploads.count() == 0

    asyncio.run(body())
    assert not [path for path in world.blobs.rglob("*") if path.is_file()]


def test_a_full_disk_answers_503_with_the_reason_and_recovers_by_itself(world: RegistryWorld, tmp_path: Path) -> None:
    file, digest = make_file(tmp_path, 4 * CHUNK)
    world.disk.room = 2 * CHUNK + 5

    async def body() -> None:
        async with world.registry(), world.client(chunk_bytes=CHUNK, stall_seconds_max=0.3) as client:
            with pytest.raises(Unavailable, match="disk is full") as caught:
                await client.push_blob(REPOSITORY, digest, file)
            assert f"{2 * CHUNK + 5} bytes of this upload are stored" in caught.value.message
            world.disk.room = None
            assert await client.push_blob(REPOSITORY, digest, file)

    asyncio.run(body())


def test_a_push_that_stands_still_says_why_and_goes_on_by_itself(world: RegistryWorld, tmp_path: Path) -> None:
    file, digest = make_file(tmp_path, 4 * CHUNK)
    world.disk.room = 2 * CHUNK + 5
    said: list[str] = []

    def make_room(why: str) -> None:
        said.append(why)
        world.disk.room = None

    async def body() -> None:
        async with world.registry(), world.client(chunk_bytes=CHUNK, waits=make_room) as client:
            assert await client.push_blob(REPOSITORY, digest, file)

    asyncio.run(body())
    assert len(said) == 1
    assert said[0].startswith(f"push of {digest} stays at {2 * CHUNK + 5} of {4 * CHUNK} bytes, trying again: ")
    assert "the registry's disk is full" in said[0]


def test_the_reserve_is_kept_free_and_the_answer_says_when_to_come_back(world: RegistryWorld) -> None:
    world.reserve_bytes, world.disk.free = 1000, 1500

    async def body() -> None:
        async with world.registry(), world.registry_http() as http:
            headers = {"Authorization": f"Bearer {world.push_token(REPOSITORY)}"}
            begun = await http.post(f"{world.url}/v2/{REPOSITORY}/blobs/uploads/", headers=headers)
            assert begun.status_code == 202
            refused = await http.patch(f"{world.url}{begun.headers['location']}", headers=headers, content=b"x" * 501)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            assert refused.json()["errors"][0]["code"] == "UNAVAILABLE"
            assert "501 bytes do not fit: 1500 are free" in refused.json()["errors"][0]["message"]
            world.disk.free = 10_000
            taken = await http.patch(f"{world.url}{begun.headers['location']}", headers=headers, content=b"x" * 501)
            assert (taken.status_code, taken.headers["range"]) == (202, "0-500")

    asyncio.run(body())


def test_a_chunk_out_of_order_is_refused_with_the_place_to_go_on(world: RegistryWorld) -> None:
    async def body() -> None:
        async with world.registry(), world.registry_http() as http:
            http.headers["Authorization"] = f"Bearer {world.push_token(REPOSITORY)}"
            begun = await http.post(f"{world.url}/v2/{REPOSITORY}/blobs/uploads/")
            location = f"{world.url}{begun.headers['location']}"
            await http.patch(location, content=b"0123456789", headers={"Content-Range": "0-9"})
            refused = await http.patch(location, content=b"xx", headers={"Content-Range": "20-21"})
            assert (refused.status_code, refused.headers["range"]) == (416, "0-9")
            assert "this upload goes on at byte 10" in refused.json()["errors"][0]["message"]
            assert (await http.get(location)).headers["range"] == "0-9"
            elsewhere = location.replace(REPOSITORY, "default/other")
            http.headers["Authorization"] = f"Bearer {world.push_token('default/other')}"
            assert (await http.patch(elsewhere, content=b"xx")).json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
            http.headers["Authorization"] = f"Bearer {world.push_token(REPOSITORY)}"
            assert (await http.delete(location)).status_code == 204
            assert (await http.get(location)).status_code == 404

    asyncio.run(body())


def test_a_manifest_is_taken_only_when_all_it_names_is_here(world: RegistryWorld) -> None:
    config, layer = blob_of(b"{}"), blob_of(b"weights")
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": config.digest, "size": 2},
        "layers": [{"mediaType": "application/octet-stream", "digest": layer.digest, "size": 7}],
    }).encode()  # fmt: skip

    async def body() -> None:
        async with world.running() as (_, client):
            await client.push_blob(REPOSITORY, config.digest, config.body)
            with pytest.raises(Invalid, match=rf"layers\[0\] {layer.digest} is not in repository"):
                await client.push_manifest(REPOSITORY, "v1", manifest, MANIFEST_MEDIA_TYPE)
            await client.push_blob(REPOSITORY, layer.digest, layer.body)
            await client.push_manifest(REPOSITORY, "v1", manifest, MANIFEST_MEDIA_TYPE)
            digest = blob_of(manifest).digest
            async with world.registry_http() as http:
                http.headers["Authorization"] = f"Bearer {world.push_token(REPOSITORY)}"
                for reference in ("v1", digest):
                    assert (await http.get(f"{world.url}/v2/{REPOSITORY}/manifests/{reference}")).content == manifest
                absent = await http.get(f"{world.url}/v2/{REPOSITORY}/manifests/v2")
                assert (absent.status_code, absent.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
                assert (await http.get(f"{world.url}/v2/{REPOSITORY}/tags/list")).json() == {"name": REPOSITORY, "tags": ["v1"]}
                assert (await http.delete(f"{world.url}/v2/{REPOSITORY}/manifests/v1")).status_code == 405
            with pytest.raises(Invalid, match="its URL says"):
                await client.push_manifest(REPOSITORY, layer.digest, manifest, MANIFEST_MEDIA_TYPE)
            with pytest.raises(Invalid, match="not a manifest"):
                await client.push_manifest(REPOSITORY, "v1", b"[1]", MANIFEST_MEDIA_TYPE)

    asyncio.run(body())


def test_who_is_not_known_or_not_allowed_is_told_so(world: RegistryWorld) -> None:
    blob = blob_of(b"weights")
    gateway = world.tokens.issue_api_token("g", "gateway")

    async def body() -> None:
        async with world.token_service() as api, world.registry(f"{api.url}/token"), world.caller(api, world.admin_token) as client:
            await client.push_blob(REPOSITORY, blob.digest, blob.body)
            async with world.registry_http() as http:
                url = f"{world.url}/v2/{REPOSITORY}/blobs/{blob.digest}"
                nobody = await http.get(url)
                assert nobody.status_code == 401
                assert nobody.headers["www-authenticate"].startswith('Bearer realm="https://127.0.0.1:')
                assert f'scope="repository:{REPOSITORY}:pull,push"' in nobody.headers["www-authenticate"]
                ended = await http.get(url, headers={"Authorization": f"Bearer {world.board_token(REPOSITORY, blob.digest, seconds=-60)}"})
                assert "token ended" in ended.json()["errors"][0]["message"]
                board = {"Authorization": f"Bearer {world.board_token(REPOSITORY, blob.digest)}"}
                assert (await http.get(url, headers=board)).content == b"weights"
                other = await http.get(f"{world.url}/v2/{REPOSITORY}/blobs/sha256:{2:064x}", headers=board)
                assert (other.status_code, other.json()["errors"][0]["code"]) == (403, "DENIED")
                assert (await http.post(f"{world.url}/v2/{REPOSITORY}/blobs/uploads/", headers=board)).status_code == 403
                assert (await http.get(f"{world.url}/v2/", headers={"Authorization": "Bearer nonsense"})).status_code == 401
            async with world.caller(api, "rkt1.unknown") as stranger:
                with pytest.raises((Unauthenticated, PermissionDenied)):
                    await stranger.find_blob(REPOSITORY, blob.digest)
            async with world.caller(api, gateway) as outsider:
                with pytest.raises((Unauthenticated, PermissionDenied)):
                    await outsider.find_blob(REPOSITORY, blob.digest)

    asyncio.run(body())


def test_a_body_that_nobody_reads_to_its_end_holds_no_file(tmp_path: Path) -> None:
    """A request that breaks off leaves its body suspended until it is collected, in whatever order."""
    file, _ = make_file(tmp_path, 2 * PIECE_BYTES)

    async def body() -> None:
        pieces = aiter(_Chunk(file, 0, 2 * PIECE_BYTES))
        assert len(await anext(pieces)) == PIECE_BYTES
        held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert str(file) not in held
        assert b"".join([piece async for piece in pieces]) == file.read_bytes()[PIECE_BYTES:]

    asyncio.run(body())
