"""How much the API takes on at once; what is above is answered 429 with Retry-After, and clients of Kubernetes come back by themselves.

Short requests and watches are counted apart: watches stay for minutes and are cheap, and must not crowd out writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rkfleet.errors import ResourceExhausted

__all__ = ["LOG_STREAMS_MAX", "REQUESTS_MAX", "WATCHES_MAX", "Limit"]

REQUESTS_MAX: Final = 400  # As kube-apiserver's reads in flight: each may hold a body of 3 MiB, so 1.2 GiB at the very worst.
WATCHES_MAX: Final = 2000  # Each holds a buffer and a TLS connection, about 60 KiB; a fleet's clients need tens.
LOG_STREAMS_MAX: Final = 64  # Each holds a connection and one chunk of 16 KiB; a screen shows ten, and boards are asked in real time.


class Limit:
    """A number of places; a request that finds none is refused at once instead of waiting unseen."""

    def __init__(self, what: str, maximum: int) -> None:
        self._what: Final = what
        self._maximum: Final = maximum
        self.taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            ResourceExhausted: All are taken.
        """
        if self.taken >= self._maximum:
            raise ResourceExhausted(f"too many {self._what}: {self.taken} are under way, the limit is {self._maximum}; try again later")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
