"""The record of a partial file: what counts, what is read back, what a kill or a full disk leaves."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from agent.artifacts.chunks import Partial
from tests.support.disk import LimitedDisk

CHUNK = 1000
BODY = os.urandom(3 * CHUNK + 77)
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


def open_partial(directory: Path, disk: LimitedDisk | None = None, size: int = len(BODY), digest: str = DIGEST) -> Partial:
    return Partial(directory / "data", directory / "data.chunks", digest, size, disk=disk or LimitedDisk(), chunk_bytes=CHUNK)


def test_whole_chunks_count_and_the_rest_is_forgotten(tmp_path: Path) -> None:
    partial = open_partial(tmp_path)
    partial.write(BODY[: 2 * CHUNK + 500])
    assert partial.durable_bytes == 2 * CHUNK
    partial.close()
    again = open_partial(tmp_path)
    assert again.durable_bytes == 2 * CHUNK
    assert (tmp_path / "data").stat().st_size == 2 * CHUNK
    again.write(BODY[2 * CHUNK :])
    assert again.is_complete()
    assert again.digest() == DIGEST
    again.close()
    assert (tmp_path / "data").read_bytes() == BODY


def test_a_chunk_that_the_disk_lost_is_fetched_again_with_all_after_it(tmp_path: Path) -> None:
    partial = open_partial(tmp_path)
    partial.write(BODY[: 3 * CHUNK])
    partial.close()
    with (tmp_path / "data").open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(bytes([BODY[CHUNK + 5] ^ 1]))
    again = open_partial(tmp_path)
    assert again.durable_bytes == CHUNK
    again.write(BODY[CHUNK:])
    assert again.digest() == DIGEST
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 60])
def test_a_record_that_was_torn_by_a_kill_is_believed_up_to_its_last_whole_line(tmp_path: Path, cut: int) -> None:
    partial = open_partial(tmp_path)
    partial.write(BODY[: 3 * CHUNK])
    partial.close()
    record = tmp_path / "data.chunks"
    record.write_bytes(record.read_bytes()[:-cut])
    again = open_partial(tmp_path)
    assert again.durable_bytes == max(0, 3 - -(-cut // 9)) * CHUNK
    again.write(BODY[again.durable_bytes :])
    assert again.digest() == DIGEST
    again.close()
    third = open_partial(tmp_path)
    assert third.is_complete()
    third.close()


def test_a_record_of_another_file_is_not_believed(tmp_path: Path) -> None:
    partial = open_partial(tmp_path)
    partial.write(BODY[: 2 * CHUNK])
    partial.close()
    other = open_partial(tmp_path, size=5 * CHUNK)
    assert other.durable_bytes == 0
    other.close()


@pytest.mark.parametrize("room", [0, 1, 250, CHUNK - 1, CHUNK, CHUNK + 4, CHUNK + 9, CHUNK + 300])
def test_a_disk_that_becomes_full_at_any_moment_costs_at_most_the_chunk(tmp_path: Path, room: int) -> None:
    """Also between the data of a chunk and its line in the record."""
    disk = LimitedDisk()
    partial = open_partial(tmp_path, disk)
    disk.room = room
    with pytest.raises(OSError, match="No space left"):
        partial.write(BODY)
    partial.rewind()
    assert partial.durable_bytes == (CHUNK if room >= CHUNK + 9 else 0)
    disk.room = None
    partial.write(BODY[partial.durable_bytes :])
    assert partial.digest() == DIGEST
    partial.close()
    again = open_partial(tmp_path)
    assert again.is_complete()
    assert again.digest() == DIGEST
    again.close()
