"""What is looked at in everything that comes over the session: lengths, counts, words of a closed set.

In: values as protobuf brought them. Out: the same values, or BadRequest that names the field, the limit and what was found. `wire.py` and
`wire_report.py` decode with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from rkfleet.errors import BadRequest

__all__ = ["TEXT_LENGTH_MAX", "listed", "milliseconds", "one_of", "text"]

TEXT_LENGTH_MAX: Final = 4096  # Sentences, versions, URLs; as `lastExit.message` in the schema.

T = TypeVar("T")
Word = TypeVar("Word", bound=str)


def milliseconds(seconds: float) -> int:
    """Return a duration as the wire has it."""
    return round(seconds * 1000)


def text(field: str, value: str) -> str:
    """Return a text that is no longer than it may be."""
    if len(value) > TEXT_LENGTH_MAX:
        raise BadRequest(f"{field} has {len(value)} characters, at most {TEXT_LENGTH_MAX} are allowed")
    return value


def one_of(field: str, value: str, words: tuple[Word, ...]) -> Word:
    """Return the word that a text is."""
    for word in words:
        if word == value:
            return word
    raise BadRequest(f"{field} {value[:80]!r} must be one of {', '.join(words)}")


def listed(field: str, values: Sequence[T], limit: int) -> Sequence[T]:
    """Return a list that has no more entries than it may have."""
    if len(values) > limit:
        raise BadRequest(f"{field} has {len(values)} entries, at most {limit} are allowed")
    return values
