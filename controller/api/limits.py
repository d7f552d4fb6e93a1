"""How much the API takes on at once; what is above is answered 429 with Retry-After, and clients of Kubernetes come back by themselves.

Short requests and watches are counted apart: watches stay for minutes and are cheap, and must not crowd out writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rkfleet.clock import Clock
from rkfleet.errors import ResourceExhausted

__all__ = ["LOG_STREAMS_MAX", "REQUESTS_MAX", "WATCHES_MAX", "FailureLimit", "Limit"]

REQUESTS_MAX: Final = 400  # As kube-apiserver's reads in flight: each may hold a body of 3 MiB, so 1.2 GiB at the very worst.
WATCHES_MAX: Final = 2000  # Each holds a buffer and a TLS connection, about 60 KiB; a fleet's clients need tens.
LOG_STREAMS_MAX: Final = 64  # Each holds a connection and one chunk of 16 KiB; a screen shows ten, and boards are asked in real time.
FAILURES_MAX: Final = 20  # Of one caller in `FAILURE_SECONDS`: a site of boards with one fault each is heard, a guesser is not.
FAILURE_SECONDS: Final = 60.0
CALLERS_MAX: Final = 4096  # Addresses that are remembered; whoever has more of them pushes out those that were quiet longest.


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


class FailureLimit:
    """Refuses callers that failed too often lately; who succeeds is never limited."""

    def __init__(self, what: str, clock: Clock) -> None:
        self._what: Final = what
        self._clock: Final = clock
        self._failures: Final[OrderedDict[str, list[float]]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Let the caller in.

        Raises:
            ResourceExhausted: It failed `FAILURES_MAX` times within `FAILURE_SECONDS`; the error says when to come again.
        """
        recent = self._recent(caller)
        if len(recent) >= FAILURES_MAX:
            wait = recent[0] + FAILURE_SECONDS - self._clock.monotonic()
            raise ResourceExhausted(
                f"{len(recent)} {self._what} from {caller} were refused within {FAILURE_SECONDS:.0f} s; try again in {wait:.0f} s",
                retry_after_seconds=max(1, round(wait)),
                guessed=True,
            )

    def failed(self, caller: str) -> None:
        """Count a failure of the caller."""
        self._failures[caller] = [*self._recent(caller), self._clock.monotonic()]
        self._failures.move_to_end(caller)
        if len(self._failures) > CALLERS_MAX:
            self._failures.popitem(last=False)

    def _recent(self, caller: str) -> list[float]:
        since = self._clock.monotonic() - FAILURE_SECONDS
        return [moment for moment in self._failures.get(caller, ()) if moment > since]
