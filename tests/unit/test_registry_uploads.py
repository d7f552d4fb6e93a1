"""Uploads at rest: what a restart finds, what time removes, and the limit on how many are open."""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import timedelta
from pathlib import Path

import pytest

from controller.registry import uploads as uploads_module
from controller.registry.blobs import BlobStore
from controller.registry.uploads import IDLE_SECONDS_MAX, UPLOADS_MAX, Uploads
from rkfleet.clock import SystemClock
from rkfleet.errors import NotFound, ResourceExhausted
from rkfleet.packaging import blob_of
from tests.support.disk import LimitedDisk


def open_uploads(root: Path) -> tuple[BlobStore, Uploads]:
    disk = LimitedDisk()
    blobs = BlobStore(root / "blobs", disk, 0)
    numbers = itertools.count(len(list((root / "uploads").glob("*"))) if (root / "uploads").exists() else 0)
    return blobs, Uploads(root / "uploads", blobs, disk, lambda: f"{next(numbers):032x}")


def test_an_upload_goes_on_after_a_restart_and_becomes_a_blob(tmp_path: Path) -> None:
    blob = blob_of(os.urandom(3000))

    async def write(uploads: Uploads, id: str, part: bytes) -> int:
        async with uploads.hold("default/a", id) as upload:
            upload.write(part)
            return upload.offset

    async def finish(uploads: Uploads, id: str) -> None:
        async with uploads.hold("default/a", id) as upload:
            upload.finish(blob.digest)

    _, first = open_uploads(tmp_path)
    id = first.begin("default/a")
    assert asyncio.run(write(first, id, blob.body[:1000])) == 1000
    first.close()
    (tmp_path / "uploads" / f"{uploads_module.SCRATCH_PREFIX}left").write_bytes(b"torn")
    blobs, second = open_uploads(tmp_path)
    assert not (tmp_path / "uploads" / f"{uploads_module.SCRATCH_PREFIX}left").exists()
    assert asyncio.run(write(second, id, blob.body[1000:])) == 3000
    asyncio.run(finish(second, id))
    assert blobs.path(blob.digest).read_bytes() == blob.body
    assert second.count() == 0
    with pytest.raises(NotFound):
        asyncio.run(write(second, id, b"more"))


def test_an_upload_that_nobody_continues_for_a_day_is_removed(tmp_path: Path) -> None:
    _, uploads = open_uploads(tmp_path)
    uploads.begin("default/a")
    now = SystemClock().now()
    assert uploads.expire(now + timedelta(seconds=IDLE_SECONDS_MAX - 60)) == 0
    assert uploads.expire(now + timedelta(seconds=IDLE_SECONDS_MAX + 60)) == 1
    assert uploads.count() == 0


def test_a_new_upload_is_refused_when_too_many_are_open(tmp_path: Path) -> None:
    _, uploads = open_uploads(tmp_path)
    for _ in range(UPLOADS_MAX):
        uploads.begin("default/a")
    with pytest.raises(ResourceExhausted, match=f"{UPLOADS_MAX} uploads are open"):
        uploads.begin("default/a")


@pytest.mark.parametrize("id", ["..", "nothing", f"x.{0:016x}", "a\0b", f"../blobs/x.{0:016x}"])
def test_an_id_that_was_never_given_is_not_found(tmp_path: Path, id: str) -> None:
    _, uploads = open_uploads(tmp_path)
    with pytest.raises(NotFound):
        asyncio.run(uploads.cancel("default/a", id))
