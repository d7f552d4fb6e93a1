"""The time of the fleet: the controller's clock, as far as this machine has heard of it.

In: what the controller says the time is, when a session begins. Out: the time now. Boards boot without a clock, or with one that is wrong
by years; once the controller has told the time, what passes since then is monotonic, and the machine's own calendar has no say any more.
Made by the agent's `app.py`; the session tells it, renewals ask it.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta
from typing import Final

from rkfleet.clock import Clock
from rkfleet.tls import check_dates, ignore_dates

__all__ = ["FleetTime", "follow_dates"]

AGREES: Final = timedelta(days=1)  # A calendar that is wrong is so by years; a certificate of 90 days does not mind a day.
LOOK_SECONDS: Final = 10.0  # So long after the clock of a machine jumped its gateways may be refused.


class FleetTime:
    """Wall time by the controller's clock, or by the machine's own until the controller was heard."""

    def __init__(self, clock: Clock) -> None:
        """Take the machine's clock."""
        self._clock: Final = clock
        self._told: datetime | None = None
        self._told_at = 0.0

    @property
    def is_told(self) -> bool:
        """Whether the controller has told the time since this program started."""
        return self._told is not None

    def tell(self, moment: datetime) -> None:
        """Take over what the controller says the time is; its way here makes it late by a moment."""
        self._told, self._told_at = moment, self._clock.monotonic()

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        if self._told is None:
            return self._clock.now()
        return self._told + timedelta(seconds=self._clock.monotonic() - self._told_at)

    @property
    def agrees(self) -> bool:
        """Whether the machine's own clock says about the same as the controller's; False while that is not known."""
        return self._told is not None and abs(self._clock.now() - self.now()) < AGREES


async def follow_dates(context: ssl.SSLContext, time: FleetTime, clock: Clock) -> None:
    """Let a TLS context look at the dates of its callers' certificates while the machine's clock can be believed; until cancelled."""
    while True:
        if time.agrees:
            check_dates(context)
        else:
            ignore_dates(context)
        await clock.sleep(LOOK_SECONDS)
