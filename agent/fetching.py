"""The bytes of the board's replicas: fetches and verifications that run beside the loop.

In: `Fetch`, `CancelFetch` and `Verify` steps. Out: what runs, what failed and when it is tried again, what was verified, as the planner
wants to see it. `agent/loop.py` makes the steps and looks at the results; this module stands apart because these steps take minutes and
the loop does not wait for them.

Nothing here gives up for good. A fetch that failed, whatever the reason, is tried again with a back-off that has jitter, so a registry
that comes back, a disk that gets room and a model that is pushed again are all found without anybody's help.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agent.artifacts.cache import DigestMismatch, DiskFull
from agent.planning.values import Fetch, FetchState, Verify
from rkfleet import conditions
from rkfleet.assignment import AssignedFile, AssignedReplica
from rkfleet.clock import Clock
from rkfleet.errors import FleetError, Internal, NotFound, Unauthenticated
from rkfleet.session import Grant

__all__ = ["Bytes", "Fetches", "Grants", "Whole"]

RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 15.0  # A board with a full disk is seen to recover within this after somebody made room.

_log = logging.getLogger(__name__)


class Grants(Protocol):
    """Says where blobs are; the session does."""

    async def request_grant(self, digests: tuple[str, ...]) -> Grant:
        """Return sources and a token.

        Raises:
            Unavailable: There is no session; ask again later.
            PermissionDenied: The controller refuses; the message says why.
        """
        ...


class Whole(Protocol):
    """Files that are whole: `agent.artifacts.cache.Cache`, or the files of a board without a fleet."""

    def path(self, digest: str) -> Path:
        """Return where the file is that `holds` has found."""
        ...

    def holds(self, digest: str, size_bytes: int) -> bool:
        """Return whether the file is here."""
        ...

    async def verify(self, digest: str) -> Path:
        """Prove that the file is what its digest says, and return its path.

        Raises:
            NotFound: It is not here.
            DigestMismatch: It is something else, and was removed.
            OSError: The disk cannot be read.
        """
        ...


class Fetches(Protocol):
    """Has files arrive: `agent.artifacts.fetch.Fetcher`, or whoever else knows where they come from."""

    async def fetch(self, files: Sequence[AssignedFile], grant: Grant, progress: Callable[[int, int], None]) -> None:
        """Return when all files are here; `progress` is told bytes that are, and bytes in all.

        Raises:
            FleetError: They are not, and will not come by waiting here.
        """
        ...


class Bytes:
    """Fetches and verifications of one board. `start_*` need the task group that they are given to be open."""

    def __init__(
        self, *, cache: Whole, fetcher: Fetches, grants: Grants, clock: Clock, jitter: random.Random, on_change: Callable[[], None]
    ) -> None:
        """Take the cache and how to fill it, where grants come from, and whom to wake when something ended."""
        self._cache: Final = cache
        self._fetcher: Final = fetcher
        self._grants: Final = grants
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._on_change: Final = on_change
        self._fetches: Final[dict[str, FetchState]] = {}
        self._tasks: Final[dict[str, asyncio.Task[FetchState | None]]] = {}
        self._failures: Final[dict[str, int]] = {}
        self._verifying: Final[set[str]] = set()
        self._verified: Final[dict[str, str]] = {}
        self._mismatched: Final[dict[str, str]] = {}

    @property
    def fetches(self) -> Mapping[str, FetchState]:
        """Fetches that run or failed, by replica uid."""
        return dict(self._fetches)

    @property
    def verifying(self) -> frozenset[str]:
        """Replicas whose files are being verified."""
        return frozenset(self._verifying)

    @property
    def verified(self) -> Mapping[str, str]:
        """For each replica the load that its files were last verified for."""
        return dict(self._verified)

    @property
    def mismatched(self) -> Mapping[str, str]:
        """Why a file was thrown away when it was verified, by digest, until it is there again."""
        return dict(self._mismatched)

    @property
    def disk_problems(self) -> tuple[str, ...]:
        """Sentences of fetches that found the disk full."""
        return tuple(fetch.message for _, fetch in sorted(self._fetches.items()) if fetch.reason == conditions.DISK_FULL)

    def files(self, replicas: tuple[AssignedReplica, ...]) -> Mapping[str, str]:
        """Return the path of every file of these replicas that is in the cache, by digest."""
        wanted = {file.digest: file.size_bytes for replica in replicas for file in replica.files}
        found = {digest: str(self._cache.path(digest)) for digest, size in wanted.items() if self._cache.holds(digest, size)}
        for digest in found:
            self._mismatched.pop(digest, None)
        return found

    def start_fetch(self, step: Fetch, tasks: asyncio.TaskGroup) -> None:
        """Fetch in the background."""
        uid = step.replica.uid
        self._verified.pop(uid, None)
        waits = "waiting for the controller to say where to fetch from"
        self._fetches[uid] = FetchState(digests=frozenset(file.digest for file in step.files), message=waits)
        task = tasks.create_task(self._fetch(step), name=f"fetch for {step.replica.namespace}/{step.replica.name}")
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._fetch_ended(uid, done))

    def cancel_fetch(self, uid: str) -> None:
        """Give up a fetch; one that runs is shown until its files are closed."""
        self._failures.pop(uid, None)
        task = self._tasks.get(uid)
        if task is None:
            self._fetches.pop(uid, None)
        else:
            task.cancel()

    def start_verification(self, step: Verify, tasks: asyncio.TaskGroup) -> None:
        """Verify in the background."""
        self._verifying.add(step.uid)
        task = tasks.create_task(self._verify(step), name=f"verify for {step.uid}")
        task.add_done_callback(lambda _done: self._verification_ended(step.uid))

    def forget_verification(self, uid: str) -> None:
        """The worker that it was made for is told to go; the next load needs a new one."""
        self._verified.pop(uid, None)

    async def _fetch(self, step: Fetch) -> FetchState | None:
        """Fetch, and return the failure or None."""
        uid = step.replica.uid
        try:
            grant = await self._grants.request_grant(tuple(sorted(file.digest for file in step.files)))
            self._fetches[uid] = msgspec.structs.replace(self._fetches[uid], message="")
            await self._fetcher.fetch(step.files, grant, lambda done, _total: self._progress(uid, done))
        except FleetError as error:
            return self._failed(uid, error)
        except Exception as error:  # noqa: BLE001 (the edge of a task: one file that cannot be fetched must not end the agent)
            _log.exception("fetch met an unknown error", extra={"replica_uid": uid})
            return self._failed(uid, Internal(f"internal error in the agent: {type(error).__name__}"))
        self._failures.pop(uid, None)
        return None

    def _fetch_ended(self, uid: str, task: asyncio.Task[FetchState | None]) -> None:
        del self._fetches[uid], self._tasks[uid]
        if not task.cancelled() and (failed := task.result()) is not None:
            self._fetches[uid] = failed
        self._on_change()

    def _progress(self, uid: str, done: int) -> None:
        self._fetches[uid] = msgspec.structs.replace(self._fetches[uid], fetched_bytes=done)

    def _failed(self, uid: str, error: FleetError) -> FetchState:
        before = self._fetches[uid]
        failures = self._failures.get(uid, 0)
        if not isinstance(error, Unauthenticated):  # A grant that ended in the middle is no failure; the next one is asked for soon.
            self._failures[uid] = failures + 1
        pause = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(failures, 8)) * self._jitter.uniform(0.5, 1.0)
        _log.warning("fetch failed", extra={"replica_uid": uid, "cause": error.message, "retry_seconds": round(pause, 1)})
        return msgspec.structs.replace(before, reason=_reason_of(error), message=error.message, retry_at=self._clock.monotonic() + pause)

    async def _verify(self, step: Verify) -> None:
        try:
            for digest in step.digests:
                await self._verify_file(digest)
            self._verified[step.uid] = step.token
        except (DigestMismatch, NotFound):
            pass  # The file is gone now, which is what the planner goes by.
        except OSError as error:  # The disk cannot be read; the next pass asks for another verification.
            _log.warning("verification failed", extra={"replica_uid": step.uid, "cause": str(error)})

    def _verification_ended(self, uid: str) -> None:
        self._verifying.discard(uid)
        self._on_change()

    async def _verify_file(self, digest: str) -> None:
        try:
            await self._cache.verify(digest)
        except DigestMismatch as error:
            self._mismatched[digest] = error.message
            _log.error("artifact is spoiled", extra={"digest": digest, "cause": error.message})
            raise


def _reason_of(error: FleetError) -> str:
    match error:
        case DiskFull():
            return conditions.DISK_FULL
        case DigestMismatch():
            return conditions.DIGEST_MISMATCH
        case _:
            return conditions.FETCH_FAILED
