"""Keys that a JSON body has twice: what their first values were is lost, and nobody can have meant that.

In: a body and what it was decoded to. Out: the paths of the keys. Kubernetes tells of them under strict field validation and takes the last
value otherwise; here they are always refused, because a client that writes them is broken, and two readers of one body must not see
two objects. The decoder knows nothing of them, so bodies are judged by counting: what stands before a colon in the text, against the keys
that came out.

Source: Kubernetes enhancement KEP-2885 (server-side field validation).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import msgspec

__all__ = ["PATHS_MAX", "duplicate_keys"]

PATHS_MAX: Final = 10  # Of one body, told to the client; more say nothing new.
NAMED_BYTES_MAX: Final = 256 << 10  # Bodies that are parsed once more to name the keys: 5 ms; of larger ones only that there are some.

_KEY: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"(:?)')


class _Doubled(dict[str, Any]):
    """An object of JSON that has these keys twice."""

    twice: tuple[str, ...] = ()


def duplicate_keys(body: bytes, value: Any) -> tuple[str, ...]:
    """Return the paths of the first keys that some object of the body has twice; of a large body, one empty path.

    Args:
        body: Valid JSON.
        value: The same, decoded.
    """
    keys, compact = _keys(value), msgspec.json.format(body, indent=-1)
    # A value that begins with a colon is counted too, so equality proves that there are none, and inequality asks for a closer look.
    if compact.count(b'":') == keys or sum(1 for colon in _KEY.findall(compact) if colon) == keys:
        return ()
    if len(body) > NAMED_BYTES_MAX:
        return ("",)
    found = dict.fromkeys(_paths(json.loads(body, object_pairs_hook=_pairs), ""))
    return tuple(found)[:PATHS_MAX]


def _pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = _Doubled(members)
    if len(made) != len(members):
        made.twice = tuple(name for name, count in Counter(name for name, _ in members).items() if count > 1)
    return made


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, _Doubled):
        yield from (f"{path}{name}" for name in value.twice)
        for name, child in value.items():
            yield from _paths(child, f"{path}{name}.")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _paths(child, f"{path.removesuffix('.')}[{index}].")


def _keys(value: Any) -> int:
    """Return how many keys all objects in a value have."""
    count, level = 0, [value]
    while level:
        objects = [one for one in level if isinstance(one, dict)]
        count += sum(map(len, objects))
        level = [child for one in objects for child in one.values()] + [child for one in level if isinstance(one, list) for child in one]
    return count
