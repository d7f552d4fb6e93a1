"""What holds of every quantized weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.checkpoint.quantized import pack4, unpack4
from toolkit.dtypes import DTYPES, Dtype, dtype_of
from toolkit.quantize.gradient import quantize_gdq
from toolkit.quantize.grid import code_range, spread
from toolkit.quantize.layers import COLUMNS_EXACT, QuantizedLinear, quantize_tokens
from toolkit.quantize.normal import quantize_normal, round_to
from toolkit.quantize.second_order import quantize_grq, row_errors

FOUR_BITS = [name for name in DTYPES if name.startswith("w4a16")]


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Matrices of any scale, with rows of zeros, constant rows and outliers among them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, width = draw(st.integers(1, 12)), draw(st.integers(1, 300))
    values = random.standard_normal((rows, width)).astype(np.float32)
    values *= np.float32(2.0 ** draw(st.integers(-30, 50)))  # Far above MAGNITUDE_MIN, below which a group is taken as zero.
    values[random.random(rows) < 0.2] = 0
    values[random.random(rows) < 0.2] = values[0, 0]
    if draw(st.booleans()):
        values[random.integers(rows), random.integers(width)] *= 100
    return values


dtypes = st.sampled_from(DTYPES).map(dtype_of)


@given(weights(), dtypes)
@settings(max_examples=60, deadline=None)
def test_a_value_within_the_range_is_off_by_at_most_half_a_step(weight: Array, dtype: Dtype) -> None:
    """Outside the range the nearest end of it is taken; eight bits have nothing outside."""
    quantized = quantize_normal("w", weight, dtype)
    steps = np.broadcast_to(spread(quantized.scales, dtype.group, weight.shape[1]), weight.shape).astype(np.float64)
    low, high = code_range(dtype.weight_bits)
    ratio = weight / steps
    beyond = np.maximum(np.maximum(ratio - high, low - ratio), 0)
    assert np.all(np.abs(quantized.codes - ratio) <= np.maximum(0.5, beyond) * (1 + 1e-6))
    assert dtype.weight_bits == 4 or np.all(beyond <= 1e-6)


@given(weights(), dtypes)
@settings(max_examples=60, deadline=None)
def test_what_is_on_the_grid_stays_where_it_is(weight: Array, dtype: Dtype) -> None:
    """Quantizing twice is quantizing once."""
    once = quantize_normal("w", weight, dtype).dequantize()
    assert np.array_equal(once, quantize_normal("w", once, dtype).dequantize())


@given(weights(), dtypes, st.integers(-8, 8), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_rows_do_not_know_each_other_nor_the_unit(weight: Array, dtype: Dtype, power: int, random: object) -> None:
    """Rows in another order, in another power of two, give the same codes in that order."""
    order = np.random.default_rng(hash(random) & 0xFFFF).permutation(weight.shape[0])
    there = quantize_normal("w", weight[order] * np.float32(2.0**power), dtype)
    here = quantize_normal("w", weight, dtype)
    assert np.array_equal(here.codes[order], there.codes)


@given(weights(), st.sampled_from([name for name in DTYPES if "_g" in name]).map(dtype_of))
@settings(max_examples=40, deadline=None)
def test_groups_do_not_know_each_other(weight: Array, dtype: Dtype) -> None:
    """The first group alone has the codes that it has in the whole."""
    alone = quantize_normal("w", np.ascontiguousarray(weight[:, : dtype.group]), dtype)
    assert np.array_equal(alone.codes, quantize_normal("w", weight, dtype).codes[:, : dtype.group])


@given(st.integers(0, 2**32), st.sampled_from(FOUR_BITS).map(dtype_of), st.integers(1, 90), st.booleans())
@settings(max_examples=25, deadline=None)
def test_learned_rounding_is_never_worse_than_plain_in_the_norm_of_the_moments(seed: int, dtype: Dtype, width: int, dead: bool) -> None:
    """Also with fewer tokens than inputs, and with inputs that are always zero; gdq is never worse than grq."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((8, width)).astype(np.float32)
    x = (random.standard_normal((40, width)) @ random.standard_normal((width, width))).astype(np.float32)
    if dead:
        x[:, : width // 2 + 1] = 0
    moments = x.T @ x
    plain, grq, gdq = (
        float(row_errors(one.dequantize() - weight, moments).sum(dtype=np.float64))
        for one in (
            quantize_normal("w", weight, dtype),
            quantize_grq("w", weight, dtype, moments),
            quantize_gdq("w", weight, dtype, moments),
        )
    )
    slack = 1e-4 * float(row_errors(weight, moments).sum())  # float32 sums of moments that nearly cancel.
    assert gdq <= grq + slack
    assert grq <= plain + slack


@given(st.integers(0, 2**32), st.integers(1, 3 * COLUMNS_EXACT), st.booleans())
@settings(max_examples=25, deadline=None)
def test_channels_are_summed_as_whole_numbers(seed: int, width: int, extreme: bool) -> None:
    """int8 times int8 in float32 runs is what int64 has, also if every product is the largest there is."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((5, width)).astype(np.float32)
    x = random.standard_normal((3, width)).astype(np.float32)
    if extreme:
        weight, x = np.ones_like(weight), np.ones_like(x)
    quantized = quantize_normal("w", weight, dtype_of("w8a8"))
    codes, scales = quantize_tokens(x)
    exact = codes.astype(np.int64) @ quantized.codes.astype(np.int64).T
    layer = QuantizedLinear("w", quantized, None, activation_bits=8)
    assert np.array_equal(layer(x), exact.astype(np.float32) * quantized.scales[:, 0] * scales)


@given(st.integers(0, 2**32), st.integers(1, 900), st.sampled_from(["w8a8_g128", "w8a8_g256", "w8a8_g512", "w4a8_g32"]))
@settings(max_examples=25, deadline=None)
def test_groups_are_summed_within_the_bound_of_float32(seed: int, width: int, name: str) -> None:
    """At most n 2^-24 times the sum of magnitudes away from exact arithmetic."""
    random = np.random.default_rng(seed)
    dtype = dtype_of(name)
    quantized = quantize_normal("w", random.standard_normal((5, width)).astype(np.float32), dtype)
    x = random.standard_normal((3, width)).astype(np.float32)
    codes, scales = quantize_tokens(x)
    values = quantized.codes.astype(np.float64) * spread(quantized.scales, dtype.group, width).astype(np.float64)
    assert np.array_equal(values, quantized.dequantize())  # Code times scale is exact.
    exact = codes.astype(np.float64) @ values.T * scales
    bound = (width + 2) * 2.0**-24 * (np.abs(codes).astype(np.float64) @ np.abs(values).T) * scales
    found = QuantizedLinear("w", quantized, None, activation_bits=8)(x)
    assert np.all(np.abs(found - exact) <= bound * 1.01)


@given(weights(), st.sampled_from(FOUR_BITS).map(dtype_of))
@settings(max_examples=30, deadline=None)
def test_two_codes_in_a_byte_come_back(weight: Array, dtype: Dtype) -> None:
    """Also of an odd width."""
    codes = quantize_normal("w", weight, dtype).codes
    assert np.array_equal(codes, unpack4(pack4(codes), codes.shape[1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", ["w8a8", "w4a16_g32"])
def test_what_is_no_weight_is_refused_by_name(bad: float, dtype: str) -> None:
    """One such value anywhere names the tensor."""
    weight = np.ones((3, 40), np.float32)
    weight[2, 39] = bad
    with pytest.raises(Invalid, match=r"blk\.3\.attn_q"):
        quantize_normal("blk.3.attn_q", weight, dtype_of(dtype))


def test_a_row_of_zeros_stays_zero() -> None:
    """It has a scale like any other row, and no code."""
    for name in DTYPES:
        assert not quantize_normal("w", np.zeros((2, 70), np.float32), dtype_of(name)).dequantize().any()


def test_rounding_to_given_scales_takes_the_nearest_code() -> None:
    """A tie goes to the even one, as numpy rounds."""
    weight = np.array([[0.5, 1.5, -2.4, 300]], np.float32)
    quantized = round_to(weight, np.ones((1, 1), np.float32), dtype_of("w8a8"))
    assert quantized.codes.tolist() == [[0, 2, -2, 127]]
