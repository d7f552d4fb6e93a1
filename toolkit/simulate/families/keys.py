"""Reading keys of a GGUF file that are a family's own, with errors that name key and value.

In: metadata of a file that anybody may have written. Out: numbers. What files of every family have, `hyperparameters.from_gguf` reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rkfleet.errors import Invalid

__all__ = ["stored_count", "stored_number"]


def stored_number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return a finite number.

    Raises:
        Invalid: It is missing without a default, or is none.
    """
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Invalid(f"GGUF key {key} is {value!r}, not a number")
    return float(value)


def stored_count(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number from 1 on; errors as `stored_number`."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Invalid(f"GGUF key {key} is {value!r}, not a whole number from 1 on")
    return value
