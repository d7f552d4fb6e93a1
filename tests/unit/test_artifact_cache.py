"""The artifact cache: verify before load, references, eviction to a limit, and what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from agent.artifacts.cache import Cache, DigestMismatch, DiskFull
from agent.artifacts.prompt_caches import PromptCaches
from rkfleet.errors import NotFound
from rkfleet.metric_names import ARTIFACT_CORRUPT, ARTIFACT_EVICTED_BYTES
from rkfleet.metrics import Metrics
from rkfleet.packaging import Blob, blob_of
from tests.support.disk import LimitedDisk


def make_cache(directory: Path, limit: int = 0, disk: LimitedDisk | None = None) -> tuple[Cache, Metrics]:
    metrics = Metrics("agent")
    return Cache(directory, limit, disk or LimitedDisk(), metrics, reserve_bytes=100), metrics


def put(cache: Cache, size: int, used_at: int = 0) -> Blob:
    blob = blob_of(os.urandom(size))
    cache.path(blob.digest).write_bytes(blob.body)
    os.utime(cache.path(blob.digest), (used_at, used_at))
    return blob


def test_one_flipped_byte_is_found_before_load_and_the_file_is_thrown_away(tmp_path: Path) -> None:
    cache, metrics = make_cache(tmp_path)
    blob = put(cache, 3 << 20)
    assert asyncio.run(cache.verify(blob.digest)) == cache.path(blob.digest)
    with cache.path(blob.digest).open("r+b") as file:
        file.seek(2 << 20)
        file.write(bytes([blob.body[2 << 20] ^ 0x40]))
    assert cache.holds(blob.digest, 3 << 20)
    with pytest.raises(DigestMismatch, match=f"artifact {blob.digest} has digest sha256:"):
        asyncio.run(cache.verify(blob.digest))
    assert not cache.holds(blob.digest, 3 << 20)
    assert metrics.text().count(f"{ARTIFACT_CORRUPT.name} 1.0".encode()) == 1
    with pytest.raises(NotFound):
        asyncio.run(cache.verify(blob.digest))


def test_two_verifications_of_one_spoiled_file_find_one_spoiled_file(tmp_path: Path) -> None:
    """Two replicas of a board share it. The slower one must not throw away what has been fetched meanwhile."""
    cache, metrics = make_cache(tmp_path)
    blob = put(cache, 1 << 20)
    with cache.path(blob.digest).open("r+b") as file:
        file.write(bytes([blob.body[0] ^ 1]))

    async def both() -> list[Path | BaseException]:
        return await asyncio.gather(cache.verify(blob.digest), cache.verify(blob.digest), return_exceptions=True)

    assert [type(result) for result in asyncio.run(both())] == [DigestMismatch, DigestMismatch]
    assert metrics.text().count(f"{ARTIFACT_CORRUPT.name} 1.0".encode()) == 1


def test_room_is_made_by_the_unreferenced_file_that_was_used_longest_ago(tmp_path: Path) -> None:
    cache, metrics = make_cache(tmp_path, limit=1000)
    needed, older, newer = put(cache, 300, 1), put(cache, 300, 2), put(cache, 300, 3)
    cache.refer({"uid-1": [needed.digest], "uid-2": [needed.digest]})
    assert cache.references(needed.digest) == 2
    wanted = blob_of(b"w")
    asyncio.run(cache.make_room(100, wanted.digest))
    assert cache.used_bytes() == 900
    asyncio.run(cache.make_room(400, wanted.digest))
    assert [cache.holds(one.digest, 300) for one in (needed, older, newer)] == [True, False, True]
    assert f"{ARTIFACT_EVICTED_BYTES.name} 300.0".encode() in metrics.text()


def test_what_is_referenced_is_never_evicted_and_the_refusal_names_the_limit(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path, limit=1000)
    needed, spare = put(cache, 600), put(cache, 300)
    cache.refer({"uid-1": [needed.digest]})
    with pytest.raises(DiskFull, match=r"500 bytes of artifact .* 900 are used of 1000 for artifacts, .* only 300 could be evicted"):
        asyncio.run(cache.make_room(500, blob_of(b"w").digest))
    assert cache.holds(spare.digest, 300)
    cache.refer({})
    asyncio.run(cache.make_room(500, blob_of(b"w").digest))


def test_a_full_disk_evicts_too_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    disk = LimitedDisk()
    disk.free = 550
    cache, _ = make_cache(tmp_path, disk=disk)
    with pytest.raises(DiskFull, match=r"550 are free .*100 stay in reserve"):
        asyncio.run(cache.make_room(500, blob_of(b"w").digest))
    disk.free = 600
    asyncio.run(cache.make_room(500, blob_of(b"w").digest))


def test_a_start_removes_what_a_kill_between_two_steps_left(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path)
    lone_record, lone_data, both = (blob_of(name).digest for name in (b"1", b"2", b"3"))
    cache.record_path(lone_record).write_bytes(b"x")
    cache.partial_path(lone_data).write_bytes(b"x")
    cache.partial_path(both).write_bytes(b"x")
    cache.record_path(both).write_bytes(b"x")
    make_cache(tmp_path)
    left = {path.name for path in (tmp_path / "partial").iterdir()}
    assert left == {cache.partial_path(both).name, cache.record_path(both).name}


def test_directories_that_somebody_removed_are_made_again(tmp_path: Path) -> None:
    """A person who frees space with `rm -rf` costs the bytes, not the agent."""
    cache, _ = make_cache(tmp_path)
    lost = put(cache, 10)
    shutil.rmtree(tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "partial")
    assert cache.used_bytes() == 0
    assert not cache.holds(lost.digest, 10)
    asyncio.run(cache.make_room(10, lost.digest))
    cache.partial_path(lost.digest).write_bytes(lost.body)
    cache.adopt(lost.digest)
    assert cache.holds(lost.digest, 10)


def test_saved_prompts_count_against_the_limit_and_only_those_of_nobody_are_removed(tmp_path: Path) -> None:
    """A worker may be writing one while they are counted."""
    prompts = PromptCaches(tmp_path)
    assert (prompts.used_bytes(), prompts.foreign(frozenset())) == (0, ())
    for name, size in (("a-1.3.0", 300), ("b-1.3.0", 400)):
        (prompts.directory / name).mkdir(parents=True)
        (prompts.directory / name / "x.kv").write_bytes(bytes(size))
    cache = Cache(tmp_path, 1000, LimitedDisk(), Metrics("agent"), reserve_bytes=0, beside=prompts.used_bytes)
    blob = put(cache, 100)
    assert cache.used_bytes() == 800
    with pytest.raises(DiskFull):
        asyncio.run(cache.make_room(301, blob.digest))
    assert prompts.foreign({"a-1.3.0", "c"}) == ("b-1.3.0",)
    prompts.remove(("b-1.3.0",))
    assert prompts.used_bytes() == 300
    asyncio.run(cache.make_room(301, blob.digest))
