"""The quantized types of RKLLM, as numbers: `w4a16_g128` is four bits of weight, activations left alone, a scale for every 128 weights.

In: the vendor's word. Out: a `Dtype`. Which chip takes which, and since when, is `toolkit.platforms`. Source: RKLLM SDK user guide
1.3.0, `build`, table of quantized_dtype.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from rkfleet.errors import Invalid

__all__ = ["DTYPES", "Dtype", "dtype_of"]

DTYPES: Final = (
    "w8a8",
    "w8a8_g128",
    "w8a8_g256",
    "w8a8_g512",
    "w4a16",
    "w4a16_g32",
    "w4a16_g64",
    "w4a16_g128",
    "w4a8_g32",
)
_WORD: Final = re.compile(r"w([48])a(8|16)(?:_g([0-9]+))?")


class Dtype(msgspec.Struct, frozen=True):
    """One quantized type.

    Attributes:
        activation_bits: 8: activations are quantized for each token as they come; 16: they stay floating point.
        group: Weights along the input that share a scale; 0 is one scale for each output channel.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int


def dtype_of(name: str) -> Dtype:
    """Return the type of that name.

    Raises:
        Invalid: There is none.
    """
    found = _WORD.fullmatch(name) if name in DTYPES else None
    if found is None:
        raise Invalid(f"dtype {name!r} is unknown; known are {', '.join(DTYPES)}")
    return Dtype(name, int(found[1]), int(found[2]), int(found[3] or 0))
