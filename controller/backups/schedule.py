"""Backups of a running controller by themselves: every so often one, of which so many are kept.

In: a data directory, and a function that takes one backup. Out: `backups/rkfleet-<time>.tar`. When the next is due follows from the newest
file, so restarts neither skip nor repeat one. Each is taken in a process of its own (`take_in_child`): proving a copy reads every object,
which is memory and time that this process owes its boards. A failed backup is a sentence in the log and a metric; the older ones stay.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controller.backups.files import BACKUPS
from controller.trust.files import make_private_directory
from rkfleet.clock import Clock
from rkfleet.errors import FleetError, Unavailable
from rkfleet.metric_names import BACKUP_FAILURES, BACKUP_NEWEST
from rkfleet.metrics import Metrics

__all__ = ["Schedule", "take_in_child"]

SETTLE_SECONDS: Final = 600.0  # A controller that was just started has more urgent things to do.
RETRY_SECONDS: Final = 3600.0  # After a failure; the operator has seen it in the log by then.
LOOK_SECONDS_MAX: Final = 3600.0  # Waits are no longer, because the wall clock may be set.
CHILD_SECONDS_MAX: Final = 1800.0  # A backup takes seconds; a disk on which it takes this long should be known as one.
SAID_BYTES_MAX: Final = 2_000  # Of what a failed child said, its end.

_NAME: Final = "rkfleet-%Y%m%dT%H%M%SZ.tar"
_NAMED: Final = re.compile(r"rkfleet-\d{8}T\d{6}Z\.tar")

_log: Final = logging.getLogger(__name__)


class Schedule:
    """Takes backups for as long as `run` runs.

    Args:
        directory: Data directory.
        every_seconds: From one backup to the next.
        kept: How many are kept.
        clock: Time.
        metrics: Where failures and the newest are told.
        take: Makes the file that it is given.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_seconds: float,
        kept: int,
        clock: Clock,
        metrics: Metrics,
        take: Callable[[Path], Awaitable[None]],
    ) -> None:
        self._directory: Final = directory / BACKUPS
        self._every_seconds: Final = every_seconds
        self._kept: Final = kept
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._take: Final = take
        metrics.counter(BACKUP_FAILURES)

    async def run(self) -> None:
        """Take backups until cancelled."""
        await self._clock.sleep(min(self._every_seconds, SETTLE_SECONDS))
        while True:
            wait = self._until_due()
            if wait <= 0:
                wait = 0.0 if await self._back_up() else min(self._every_seconds, RETRY_SECONDS)
            await self._clock.sleep(min(wait, LOOK_SECONDS_MAX))

    async def _back_up(self) -> bool:
        """Take one backup and remove those that are too many; return whether it worked."""
        target = self._directory / self._clock.now().strftime(_NAME)
        try:
            make_private_directory(self._directory)
            self._remove(self._directory.glob(".rkfleet-*"))  # What one left that was killed.
            await self._take(target)
            self._remove(self._backups()[: -self._kept])
        except FleetError as error:
            _log.error("the backup %s failed, older ones are kept: %s", target, error.message)
            self._metrics.counter(BACKUP_FAILURES).inc()
            return False
        _log.info("backed up", extra={"file": str(target), "bytes": target.stat().st_size})
        return True

    def _remove(self, paths: Iterable[Path]) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"{error.filename} cannot be removed: {error.strerror or error}") from error

    def _backups(self) -> list[Path]:
        """Return the backups of this schedule, oldest first."""
        try:
            return sorted(path for path in self._directory.iterdir() if _NAMED.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def _until_due(self) -> float:
        """Return the seconds until the next backup; nothing if there is none yet."""
        backups = self._backups()
        if not backups:
            return 0.0
        newest = datetime.strptime(backups[-1].name, _NAME).replace(tzinfo=UTC)
        self._metrics.gauge(BACKUP_NEWEST).set(newest.timestamp())
        return self._every_seconds - max((self._clock.now() - newest).total_seconds(), 0.0)


async def take_in_child(directory: Path, target: Path, *, with_store: bool) -> None:
    """Take a backup in a process of its own.

    Args:
        directory: Data directory of the controller that runs here.
        target: File to make.
        with_store: False where the store is in PostgreSQL.

    Raises:
        Unavailable: It did not work; the message is what the process said.
    """
    words = ("--data-dir", str(directory), "--to", str(target), *(() if with_store else ("--files-only",)))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller", "backup", *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CHILD_SECONDS_MAX):
            _, said = await child.communicate()
    except TimeoutError:
        raise Unavailable(f"it took more than {CHILD_SECONDS_MAX:g} s; is the disk slow?") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        lines = said[-SAID_BYTES_MAX:].decode(errors="replace").strip().splitlines() or [f"it ended with status {child.returncode}"]
        raise Unavailable(lines[-1].removeprefix("error: "))
