"""How people name objects: `KIND/NAME ...`, or `KIND NAME ...`.

In: words of a command line. Out: kinds and names. Pure; every command that takes any kind of object calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rkfleet.cli.kind_words import find_resource
from rkfleet.errors import BadRequest

if TYPE_CHECKING:
    from rkfleet.kinds import Resource

__all__ = ["parse_targets"]


def parse_targets(words: Sequence[str]) -> list[tuple[Resource, str]]:
    """Return the kinds and names that words mean, as kubectl reads them.

    Raises:
        BadRequest: A word is neither KIND/NAME nor one of the names after a KIND.
        NotFound: A kind is not known.
    """
    if any("/" in word for word in words):
        for word in words:
            if word.count("/") != 1 or not all(word.split("/")):
                raise BadRequest(f"{word!r} must be KIND/NAME, as the others are")
        return [(find_resource(word.partition("/")[0]), word.partition("/")[2]) for word in words]
    if len(words) < 2:
        raise BadRequest(f"{' '.join(words)!r} names a kind and no object; write KIND/NAME")
    resource = find_resource(words[0])
    return [(resource, name) for name in words[1:]]
