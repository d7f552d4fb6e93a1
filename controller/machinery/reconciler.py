"""What a control loop is: a function from a key to the world being one step closer to what is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from controller.machinery.cache import Cache
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref

__all__ = ["Reconciler", "Source", "itself"]


class Reconciler(Protocol):
    """Observes, plans and acts for one key; it is called again after every change of what it watches, also of its own.

    What every implementation keeps: it may be called at any time, for a key that is unchanged or gone, after a crash at any point of
    an earlier call, and with caches that lag; never for the same key twice at once.
    """

    async def reconcile(self, key: Ref) -> float | None:
        """Bring the world one step closer to what is declared for `key`.

        Returns:
            Seconds after which to be called again although nothing changed, or None.

        Raises:
            FleetError: It did not work; called again after a growing wait.
        """
        ...


class Source(msgspec.Struct, frozen=True):
    """A cache that wakes a reconciler.

    Attributes:
        cache: Whose changes count.
        keys: From an object before and after a change (None: not there) to the keys to look at; pure and quick.
    """

    cache: Cache[Any]
    keys: Callable[[Any, Any], Iterable[Ref]]


def itself(old: Object | None, new: Object | None) -> Iterable[Ref]:
    """Wake the key of the object that changed."""
    if (known := new or old) is not None:
        yield known.ref
