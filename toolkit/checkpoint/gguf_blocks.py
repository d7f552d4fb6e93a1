"""Weights out of the blocks of GGUF: bytes of a tensor as float32.

In: bytes and a type. Out: float32. Types that models of these boards come in (F32, F16, BF16, Q8_0, Q4_0, Q4_1) are decoded here, a cache's
worth of blocks at a time; the rest by the `gguf` package. Both are bit-equal.

Source of the layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, `block_q4_0`, `block_q4_1`, `block_q8_0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array

__all__ = ["BLOCK", "decode"]

BLOCK: Final = 32  # Weights in a block of Q8_0, Q4_0 and Q4_1.
_BLOCKS_AT_ONCE: Final = 4096  # 512 KiB of float32: what is computed stays in the second cache.
_PLAIN: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_Bytes = NDArray[np.uint8]


def decode(raw: _Bytes, kind: str, where: str) -> Array:
    """Return the weights of a tensor.

    Args:
        raw: Its bytes, a whole number of blocks.
        kind: Its type in the words of GGUF: Q4_0.
        where: For the error.

    Raises:
        Invalid: There is no decoder for the type.
    """
    if kind in _PLAIN:
        with np.errstate(over="ignore", invalid="ignore"):
            return raw.view(_PLAIN[kind]).astype(np.float32, copy=False)
    if kind == "BF16":  # The upper half of a float32.
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if kind in _DECODERS:
        size, decoder = _DECODERS[kind]
        blocks = raw.reshape(-1, size)
        values = np.empty((len(blocks), BLOCK), np.float32)
        with np.errstate(all="ignore"):  # Scales that are no numbers make weights that are none.
            for begin in range(0, len(blocks), _BLOCKS_AT_ONCE):
                decoder(blocks[begin : begin + _BLOCKS_AT_ONCE], values[begin : begin + _BLOCKS_AT_ONCE])
        return values.reshape(-1)
    quantized = gguf.GGMLQuantizationType[kind]
    if not len(raw):
        return np.empty(0, np.float32)
    try:
        with np.errstate(all="ignore"):
            decoded: Any = gguf.dequantize(raw.reshape(-1, gguf.GGML_QUANT_SIZES[quantized][1]), quantized)
    except NotImplementedError as error:
        raise Invalid(f"{where} has type {kind}, which nothing here decodes; convert the model to F16 or Q8_0 with llama.cpp") from error
    return np.asarray(decoded, np.float32).reshape(-1)


def _half(blocks: _Bytes, at: int) -> Array:
    """Return the float16 at that byte of every block, as a column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _q8_0(blocks: _Bytes, out: Array) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _q4_0(blocks: _Bytes, out: Array) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= np.float32(8)
    out *= _half(blocks, 0)


def _q4_1(blocks: _Bytes, out: Array) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _nibbles(codes: _Bytes, out: Array) -> None:
    """Put codes of four bits into the out: low halves first."""
    out[:, : BLOCK // 2] = codes & np.uint8(15)
    out[:, BLOCK // 2 :] = codes >> np.uint8(4)


_DECODERS: Final[Mapping[str, tuple[int, Callable[[_Bytes, Array], None]]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
}
