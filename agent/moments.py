"""When something happened, so that it can be said later how long ago that was.

In: the monotonic clock of this boot and the best known wall time. Out: moments, and their age at the time of asking. The log of reports
and the samples of an outage are kept with moments. Ages travel instead of times, because a duration is right on a board whose calendar is
wrong by years or jumps: the controller counts back from its own clock.

Within one boot of the machine an age is monotonic, also across a restart of the agent. Across a reboot only wall time is left. It is
believed when the difference could be true; a board that came up in 1970 again says nothing, until it has heard the controller's time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.fleet_time import FleetTime

__all__ = ["AGE_SECONDS_MAX", "Moment", "Moments", "wall_time"]

AGE_SECONDS_MAX: Final = 30 * 86400.0  # What is older was not kept; such an age comes from a calendar that was wrong.


class Moment(msgspec.Struct, frozen=True, gc=False):
    """A moment: the wall time as it was known then, seconds since 1970, and the monotonic second; None for one of an earlier boot."""

    wall: float
    at: float | None


class Moments:
    """Makes moments and tells their ages."""

    def __init__(self, clock: Clock, time: FleetTime) -> None:
        """Take the machine's clock (monotonic time only) and the best known wall time."""
        self._clock: Final = clock
        self._time: Final = time

    def now(self) -> Moment:
        """Return this moment."""
        return Moment(self._time.now().timestamp(), self._clock.monotonic())

    def age_seconds(self, moment: Moment) -> float | None:
        """Return how long ago a moment was, or None if that cannot be known."""
        age = self._time.now().timestamp() - moment.wall if moment.at is None else self._clock.monotonic() - moment.at
        return age if 0.0 <= age <= AGE_SECONDS_MAX else None


def wall_time(moment: Moment) -> datetime:
    """Return the wall time of a moment, as it was known then."""
    return datetime.fromtimestamp(moment.wall, UTC)
