"""When a certificate is renewed: the loop in agent and gateway that has it done in time.

In: the identity, the time, how long there has been no session. Out: calls of `renew` (the client as a child process), and `on_renewed`
with the new identity, for whoever shows or loads the certificate. Nothing else waits for it: a program whose renewal fails goes on with
what it has, and asks again.

A renewal is due from two thirds of a certificate's life on, spread over a tenth of it, so that a fleet that joined on one day does not
renew in one hour. Certificates that do not say when they end (issued before that was told) are renewed soon after the start. A machine
that cannot know the time, because it has heard no controller and has no session, asks now and then as well: its certificate may have
ended, and then a renewal is what brings it back.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

from rkfleet.clock import Clock, parse_time
from rkfleet.errors import FleetError
from rkfleet.identity import Identity, load_identity, run_client

__all__ = ["Renew", "Renewal", "Renewing", "renew_in_child"]

LOOK_SECONDS: Final = 60.0  # How late a renewal may be, and how soon a clock that jumped is noticed; looking is a comparison.
DUE_SHARE: Final = 2 / 3  # Of a life of 90 days a month is left for tries.
SPREAD_SHARE: Final = 0.1  # A fleet of 5,000 boards that joined at once renews over nine days.
UNDATED_SECONDS: Final = 600.0  # Undated certificates of a fleet are renewed within so long after the start: 8 a second of 5,000 boards.
AWAY_SECONDS: Final = 60.0  # A controller that restarts is back by then; a board whose certificate ended is not.
RETRY_SECONDS_MIN: Final = 60.0
RETRY_SECONDS_MAX: Final = 6 * 3600.0  # A child process each; a board without any network pays four a day.

_log = logging.getLogger(__name__)


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    """What the renewal client is told: the role, and for boards the identity of the machine."""

    role: Literal["board", "gateway"]
    machine_id: str = ""


Renew = Callable[[Path, Renewal], Awaitable[None]]
"""Replaces the certificates of an identity directory; raises FleetError."""


async def renew_in_child(directory: Path, renewal: Renewal) -> None:
    """Run the renewal client as a process of its own.

    Raises:
        FleetError: It failed; the message says why.
    """
    if (refusal := await run_client("rkfleet.renew", directory, renewal)) is not None:
        raise refusal


class Renewing:
    """The loop; `run` it.

    Attributes:
        identity: The identity with its newest certificates.
    """

    def __init__(
        self,
        identity: Identity,
        renewal: Renewal,
        *,
        clock: Clock,
        jitter: random.Random,
        now: Callable[[], datetime],
        on_renewed: Callable[[Identity], None],
        lost_seconds: Callable[[], float] = lambda: 0.0,
        renew: Renew = renew_in_child,
    ) -> None:
        """Take what it looks at.

        Args:
            identity: Whose certificates.
            renewal: What the client is told.
            clock: Monotonic time for pauses.
            jitter: Spreads renewals and retries.
            now: Best known wall time.
            on_renewed: Given the identity after each renewal; must not block, and raises FleetError if it cannot use the new certificate.
            lost_seconds: How long there has been no session, as far as the reason may be the certificate; 0 otherwise.
            renew: Does it.
        """
        self._renewal: Final = renewal
        self._clock: Final = clock
        self._now: Final = now
        self._on_renewed: Final = on_renewed
        self._lost_seconds: Final = lost_seconds
        self._renew: Final = renew
        self._jitter: Final = jitter
        self._share: Final = DUE_SHARE + jitter.uniform(0.0, SPREAD_SHARE)
        self._undated_at: Final = clock.monotonic() + jitter.uniform(0.0, UNDATED_SECONDS)
        self._not_before = 0.0
        self._pause = RETRY_SECONDS_MIN
        self.identity = identity

    async def run(self) -> None:
        """Look and renew until cancelled."""
        while True:
            if why := self._why_due():
                await self._try(why)
            await self._clock.sleep(LOOK_SECONDS * self._jitter.uniform(0.5, 1.0))

    def _why_due(self) -> str:
        """Return why a renewal is due now, or nothing."""
        now = self._clock.monotonic()
        if now < self._not_before:
            return ""
        if self._lost_seconds() > AWAY_SECONDS:
            return "there is no session, and the certificate may have ended"
        due = due_time(self.identity, self._share)
        if due is None:
            return "it is not known when the certificate ends" if now >= self._undated_at else ""
        return f"the certificate ends at {self.identity.expires}" if self._now() >= due else ""

    async def _try(self, why: str) -> None:
        _log.info("renewing the certificate", extra={"reason": why})
        try:
            await self._renew(self.identity.directory, self._renewal)
            renewed = load_identity(self.identity.directory)
            assert renewed is not None
            self._on_renewed(renewed)
        except FleetError as error:
            _log.warning("the certificate was not renewed: %s", error.message)
            self._wait(self._pause)
            self._pause = min(2 * self._pause, RETRY_SECONDS_MAX)
            return
        self._pause = RETRY_SECONDS_MIN
        # A clock that is years ahead, a controller that gives no dates, a session that is away for another reason: each makes the next
        # renewal due at once, and it is not asked for all the time.
        due = due_time(renewed, self._share)
        settled = due is not None and self._now() < due and not self._lost_seconds()
        self._wait(RETRY_SECONDS_MIN if settled else RETRY_SECONDS_MAX)
        self.identity = renewed
        _log.info("the certificate was renewed", extra={"expires": renewed.expires})

    def _wait(self, seconds: float) -> None:
        self._not_before = self._clock.monotonic() + seconds * self._jitter.uniform(0.5, 1.0)


def due_time(identity: Identity, share: float = DUE_SHARE) -> datetime | None:
    """Return when so much of the certificate's life is over, or None if it is not known when it began and ends."""
    try:
        issued, expires = parse_time(identity.issued), parse_time(identity.expires)
    except ValueError:
        return None
    return issued + max(expires - issued, timedelta()) * share
