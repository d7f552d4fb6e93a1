"""Version comparisons of a Model's requirements: `>=1.1.0,<1.4` against `1.1.4`.

Runtime libraries and drivers number themselves in their own ways (`1.1.4`, `0.9.8`, `b6432`, `2026.10.1`), so a version is read as the
run of numbers at its start and compared number by number, missing ones as 0; what follows the numbers is ignored. Python's packaging
rules would refuse half of what boards report.

Asked by placement (which boards may take a replica) and by agents (which of the installed libraries runs it), so that both read a
requirement alike.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Final

__all__ = ["meets", "version_order"]

_COMPARISON: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|=)?\s*[vb]?(\d+(?:\.\d+)*)\S*\s*")
_NUMBERS: Final = re.compile(r"\s*[vb]?(\d+(?:\.\d+)*)")
_OPERATORS: Final[dict[str, Callable[[list[int], list[int]], bool]]] = {
    "": operator.eq,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def meets(version: str, wanted: str) -> bool:
    """Return whether a version meets every comparison in a comma-separated list; an empty list is met by anything.

    A version without numbers meets no comparison, and a comparison that cannot be read is met by nothing: both are shown to the
    operator as what they are instead of being guessed.
    """
    return all(_meets_one(version, term) for term in wanted.split(",") if term.strip())


def version_order(version: str) -> list[int]:
    """Return what versions are ordered by: their numbers. One without numbers comes before all others."""
    found = _NUMBERS.match(version)
    return _numbers(found.group(1)) if found else []


def _meets_one(version: str, term: str) -> bool:
    comparison, have = _COMPARISON.fullmatch(term), _NUMBERS.match(version)
    if comparison is None or have is None:
        return False
    pairs = list(zip_longest(_numbers(have.group(1)), _numbers(comparison.group(2)), fillvalue=0))
    return _OPERATORS[comparison.group(1) or ""]([left for left, _ in pairs], [right for _, right in pairs])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")]
