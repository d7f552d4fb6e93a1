"""Blocks are bit by bit those of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from toolkit.quantize.blocks import ENCODINGS, encode


@pytest.mark.parametrize("kind", ENCODINGS)
@given(seed=st.integers(0, 1 << 32), rows=st.integers(0, 70), blocks=st.integers(1, 5), exponent=st.integers(-20, 3), grid=st.booleans())
@settings(deadline=None, max_examples=60)
def test_blocks_are_those_of_the_gguf_package(*, kind: str, seed: int, rows: int, blocks: int, exponent: int, grid: bool) -> None:
    """Also where weights stand on a grid, so that halves and equal distances are common."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 32 * blocks)).astype(np.float32)
    if grid:
        values = random.integers(-8, 9, values.shape).astype(np.float32)
    values *= np.float32(2.0**exponent)
    values[random.random(rows) < 0.1] = 0
    wanted = gguf.quantize(values, gguf.GGMLQuantizationType[kind]) if rows else np.empty(0, np.uint8)
    assert np.ascontiguousarray(encode(values, kind)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_two_threads_make_the_same_bytes(kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((520, 1024)).astype(np.float32)
    assert encode(values, kind, threads=2).tobytes() == gguf.quantize(values, gguf.GGMLQuantizationType[kind]).tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
def test_what_has_no_form_is_refused(kind: str, value: float) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 40] = value
    with pytest.raises(Invalid, match=r"^blk\.0 "):
        encode(values, kind, where="blk.0")
    with pytest.raises(Invalid, match="known are F32"):
        encode(values, "Q2_K")
    if kind != "F16":
        with pytest.raises(Invalid, match="no whole number of blocks of 32"):
            encode(values[:, :33], kind)
