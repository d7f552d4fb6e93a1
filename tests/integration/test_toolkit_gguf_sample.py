"""The real sample model goes through the toolkit's reader and writer without a bit changed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest

from rkfleet.sample import ensure_sample
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.conversion.gguf import write_gguf
from toolkit.loading import open_model

OPEN_SECONDS_MAX = 0.3  # Measured 0.01; the gguf package takes 1.7.


@pytest.mark.model
def test_the_sample_is_opened_at_once_and_written_again_bit_by_bit(tmp_path: Path) -> None:
    sample = asyncio.run(ensure_sample())
    before = time.process_time()
    GgufCheckpoint(sample)
    assert time.process_time() - before < OPEN_SECONDS_MAX
    write_gguf(open_model(sample), tmp_path / "again.gguf")
    with sample.open("rb") as one, (tmp_path / "again.gguf").open("rb") as other:
        assert hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()
    assert [one.name for one in tmp_path.iterdir()] == ["again.gguf"]
