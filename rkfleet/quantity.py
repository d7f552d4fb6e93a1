"""Kubernetes quantities: `4Gi`, `500m`, `2530Mi` to numbers and back.

Quantities are text only in manifests and in the API. Past this module every amount is a plain number of bytes, cores or seconds.

Source: Kubernetes `apimachinery/pkg/api/resource/quantity.go` (grammar, suffixes, canonical form).
"""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import Final

__all__ = ["PATTERN", "canonical_quantity", "format_bytes", "parse_bytes", "parse_quantity", "round_bytes"]

PATTERN: Final = r"^[+-]?(\d+|\d+\.\d*|\.\d+)([eE][+-]?\d+|Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?$"
_GRAMMAR: Final = re.compile(PATTERN)
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DIGITS_MAX: Final = 64  # An exponent or a run of digits beyond this says nothing about memory and costs time to expand.


def parse_quantity(text: str | int) -> Decimal:
    """Return the number that a quantity means.

    Raises:
        ValueError: `text` is not a quantity.
    """
    word = str(text)
    match = _GRAMMAR.match(word)
    if match is None or len(word) > _DIGITS_MAX:
        raise ValueError(f"{word[:_DIGITS_MAX]!r} is not a quantity such as 512Mi, 4Gi or 0.5")
    suffix = match.group(2) or ""
    number = Decimal(word[: len(word) - len(suffix)])
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    exponent = int(suffix[1:])
    if abs(exponent) > _DIGITS_MAX:
        raise ValueError(f"{word!r}: exponent {exponent} is outside -{_DIGITS_MAX}..{_DIGITS_MAX}")
    return number.scaleb(exponent)


@functools.lru_cache(maxsize=1024)  # A fleet says the same few sizes for thousands of boards, at each look of placement.
def parse_bytes(text: str | int) -> int:
    """Return a quantity of memory or storage in bytes, rounded up.

    Raises:
        ValueError: `text` is not a quantity or is negative.
    """
    number = parse_quantity(text)
    if number < 0:
        raise ValueError(f"{text!r} must not be negative")
    return int(number.to_integral_value(rounding="ROUND_CEILING"))


def format_bytes(count: int) -> str:
    """Return bytes as the shortest exact binary quantity, for example `2530Mi`."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if count and count % _BINARY[suffix] == 0:
            return f"{count // _BINARY[suffix]}{suffix}"
    return str(count)


def round_bytes(count: int, *, up: bool = False) -> str:
    """Return bytes for people, with at most two digits after the point, for example `2.48Gi`: rounded down, or up.

    What is needed is rounded up and what there is down, so that a sentence never says that 1Gi does not fit into 1Gi.
    """
    suffix = next((one for one in ("Ti", "Gi", "Mi", "Ki") if count >= _BINARY[one]), "")
    hundredths = count * 100
    unit = _BINARY.get(suffix, 1)
    rounded = -(-hundredths // unit) if up else hundredths // unit
    return f"{Decimal(rounded) / 100:f}{suffix}"


def canonical_quantity(text: str | int) -> str:
    """Return the one spelling of a quantity that hashes use: `1024Mi` and `1Gi` both give `1Gi`.

    Raises:
        ValueError: `text` is not a quantity.
    """
    number = parse_quantity(text)
    if number == number.to_integral_value():
        return format_bytes(int(number))
    return str(number.normalize())
