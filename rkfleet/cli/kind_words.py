"""What people call kinds: plural, singular, short name, kind, or the short form of a long name.

In: a word of a command line. Out: the resource. Every command that takes a kind asks here; it stands apart from those commands because
completion asks too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rkfleet.errors import NotFound

if TYPE_CHECKING:
    from rkfleet.kinds import Resource

__all__ = ["find_resource"]

# Words of this command line only: to kubectl `deployment` is a kind of its own.
_SHORT_FORMS: Final[Mapping[str, str]] = {"deployment": "modeldeployment", "deployments": "modeldeployment", "revision": "modelrevision"}


def find_resource(word: str) -> Resource:
    """Return the resource that a person means by this word.

    Raises:
        NotFound: No kind is called so; the message lists what there is.
    """
    from rkfleet.kinds import KINDS

    meant = _SHORT_FORMS.get(word.lower(), word.lower())
    for kind in KINDS:
        resource = kind.resource
        if meant in {resource.plural, resource.singular, resource.kind.lower(), resource.name, *resource.short_names}:
            return resource
    raise NotFound(f"kind {word!r} is not known; known are {', '.join(kind.resource.plural for kind in KINDS)}")
