"""Weights into the blocks of GGUF: float32 to Q8_0, Q4_0, Q4_1, F16 and BF16, bit by bit as the `gguf` package does it.

In: weights, rows innermost. Out: bytes. Called by whoever writes a GGUF file. A cache's worth of blocks is computed at a time, in place, in
one or two threads: numpy lets go of the interpreter while it computes.

Source: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c, `quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`,
`quantize_row_q4_1_ref`, of which `gguf.quantize` is the form in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.checkpoint.gguf_blocks import BLOCK

__all__ = ["ENCODINGS", "F16_MAX", "THREADS_MAX", "encode"]

F16_MAX: Final = 65504.0
THREADS_MAX: Final = 2  # More wait for memory on the machines that this was measured on.
_BLOCKS_AT_ONCE: Final = 2048  # 256 KiB of float32; with 512 what numpy does before each step shows, with 4096 nothing is won.
_HALVES_AT_ONCE: Final = 1 << 16
_THREAD_BLOCKS_MIN: Final = 4 * _BLOCKS_AT_ONCE  # Fewer are done before a second thread has begun.
_BELOW_HALF: Final = np.float32(0.49999997)  # The float32 before 0.5: with it what is a hair below a half is not rounded up.
_Bytes = NDArray[np.uint8]


class _Scratch:
    """What one thread computes in; `turned` has blocks as columns, where the largest of each costs a tenth."""

    def __init__(self) -> None:
        self.turned: Final = np.empty((BLOCK, _BLOCKS_AT_ONCE), np.float32)
        self.values: Final = np.empty((_BLOCKS_AT_ONCE, BLOCK), np.float32)
        self.signs: Final = np.empty((_BLOCKS_AT_ONCE, BLOCK), np.float32)
        self.codes: Final = np.empty((BLOCK, _BLOCKS_AT_ONCE), np.uint8)
        self.most: Final = np.full((BLOCK, _BLOCKS_AT_ONCE), 15, np.uint8)  # An array: numpy is ten times as slow with a number.


def encode(values: Array, kind: str, *, threads: int = 1, where: str = "tensor") -> NDArray[Any]:
    """Return weights as the bytes of a type.

    Args:
        values: float32, (..., columns).
        kind: One of `ENCODINGS`.
        threads: At most `THREADS_MAX` are used, and one for few weights.
        where: For errors: which tensor it is.

    Returns:
        uint8[..., bytes of a row] of the quantized types, float16 or uint16 (BF16) or float32 of the shape of the values.

    Raises:
        Invalid: The type is unknown, a row is no whole number of blocks, or a value is not finite or beyond what a scale of float16 holds.
    """
    if kind not in ENCODINGS:
        raise Invalid(f"{where} cannot become {kind!r}; known are {', '.join(ENCODINGS)}")
    values = np.ascontiguousarray(values, np.float32)
    if kind == "F32":
        return values
    if kind == "F16":
        return _f16(values, where)
    if kind == "BF16":
        return _bf16(values)
    if values.ndim == 0 or values.shape[-1] % BLOCK:
        raise Invalid(f"{where} of shape {values.shape} cannot become {kind}: its rows are no whole number of blocks of {BLOCK}")
    size, encoder = _ENCODERS[kind]
    blocks = values.reshape(-1, BLOCK)
    out = np.empty((len(blocks), size), np.uint8)
    parts = min(threads, THREADS_MAX) if len(blocks) >= _THREAD_BLOCKS_MIN else 1
    if parts == 1:
        finite = _run(encoder, blocks, out)
    else:
        half = len(blocks) // 2
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(_run, encoder, blocks[half:], out[half:])
            finite = _run(encoder, blocks[:half], out[:half]) & other.result()
    if not finite:
        raise Invalid(f"{where} cannot become {kind}: it has values that are not finite, or blocks whose scale is beyond {F16_MAX:g}")
    return out.reshape(*values.shape[:-1], values.shape[-1] // BLOCK * size)


def _run(encoder: Callable[[Array, _Bytes, _Scratch], bool], blocks: Array, out: _Bytes) -> bool:
    scratch, finite = _Scratch(), True
    with np.errstate(all="ignore"):
        for begin in range(0, len(blocks), _BLOCKS_AT_ONCE):
            part = slice(begin, begin + _BLOCKS_AT_ONCE)
            finite &= encoder(blocks[part], out[part], scratch)
    return finite


def _f16(values: Array, where: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not _finite(half):
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        raise Invalid(f"{where} has a value of {largest:g}, f16 ends at {F16_MAX:g}; take --type bf16 or f32")
    return half


def _finite(half: NDArray[np.float16]) -> bool:
    """Return whether no number is infinite or none; a part at a time, without an array as large as the first."""
    bits = half.reshape(-1).view(np.uint16)
    return all(
        int(np.bitwise_and(bits[begin : begin + _HALVES_AT_ONCE], np.uint16(0x7FFF)).max(initial=0)) < 0x7C00
        for begin in range(0, len(bits), _HALVES_AT_ONCE)
    )


def _bf16(values: Array) -> NDArray[np.uint16]:
    """Round to the nearest, halves to even; what is no number stays none."""
    bits = values.view(np.uint32)
    lower = np.right_shift(bits, 16)
    lower &= 1
    lower += np.uint32(0x7FFF)
    lower += bits
    lower >>= 16
    rounded = lower.astype(np.uint16)
    nothing = np.isnan(values)
    if nothing.any():
        rounded[nothing] = (bits[nothing] >> 16).astype(np.uint16) | np.uint16(64)
    return rounded


def _inverse(scales: Array) -> Array:
    """Return 1 / scale, and 0 where the scale is."""
    inverse: Array = np.divide(np.float32(1), scales, dtype=np.float32)
    inverse[scales == 0] = 0
    return inverse


def _put_half(values: Array, out: _Bytes, at: int) -> bool:
    """Put a number of each block as float16 into blocks, and return whether all are finite."""
    half = values.astype(np.float16)
    out.view(np.float16)[:, at // 2] = half
    return bool(np.isfinite(half).all())


def _q8_0(blocks: Array, out: _Bytes, scratch: _Scratch) -> bool:
    count = len(blocks)
    turned, values, signs = scratch.turned[:, :count], scratch.values[:count], scratch.signs[:count]
    turned[...] = blocks.T
    scales = np.abs(turned, out=turned).max(axis=0)
    scales /= np.float32(127)
    np.multiply(blocks, _inverse(scales)[:, None], out=values)
    # Halves away from zero: add a half of the value's sign, and cut.
    bits = signs.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), np.uint32(0x80000000), out=bits)
    bits |= _BELOW_HALF.view(np.uint32)
    values += signs
    out[:, 2:].view(np.int8)[...] = values
    return _put_half(scales, out, 0)


def _q4_0(blocks: Array, out: _Bytes, scratch: _Scratch) -> bool:
    turned = scratch.turned[:, : len(blocks)]
    turned[...] = blocks.T
    largest, smallest = turned.max(axis=0), turned.min(axis=0)
    scales = np.where(largest > -smallest, largest, smallest)
    even = np.flatnonzero(largest == -smallest)  # Both signs at the same distance: the first one counts.
    if len(even):
        rows = blocks[even]
        scales[even] = rows[np.arange(len(even)), np.abs(rows).argmax(axis=1)]
    scales /= np.float32(-8)
    turned *= _inverse(scales)
    turned += np.float32(8.5)
    _put_nibbles(turned, out[:, 2:], scratch)
    return _put_half(scales, out, 0)


def _q4_1(blocks: Array, out: _Bytes, scratch: _Scratch) -> bool:
    turned = scratch.turned[:, : len(blocks)]
    turned[...] = blocks.T
    smallest, scales = turned.min(axis=0), turned.max(axis=0)
    scales -= smallest
    scales /= np.float32(15)
    turned -= smallest
    turned *= _inverse(scales)
    turned += np.float32(0.5)
    _put_nibbles(turned, out[:, 4:], scratch)
    return _put_half(scales, out, 0) & _put_half(smallest, out, 2)


def _put_nibbles(turned: Array, out: _Bytes, scratch: _Scratch) -> None:
    """Cut to codes 0..15, and put two into a byte: the first half of a block into low halves."""
    codes = scratch.codes[:, : turned.shape[1]]
    codes[...] = turned
    np.minimum(codes, scratch.most[:, : turned.shape[1]], out=codes)
    low, high = codes[: BLOCK // 2], codes[BLOCK // 2 :]
    high *= 16  # A shift to the left, which numpy does five times as slowly.
    low |= high
    out[...] = low.T


_ENCODERS: Final[Mapping[str, tuple[int, Callable[[Array, _Bytes, _Scratch], bool]]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
}
ENCODINGS: Final = ("F32", "F16", "BF16", *_ENCODERS)
