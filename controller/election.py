"""Who leads: the election of one controller among those that share a database, by a Lease.

In: the store, and what to do while leading. Out: that work runs in at most one controller that still may write. The protocol is the one of
Kubernetes' own controllers, so `kubectl get leases` shows who leads: a candidate makes or takes over the Lease when its holder has not
renewed it for the whole duration, as measured by the candidate's own clock from when it saw the last renewal; nobody compares the clocks
of two machines. A holder that could not renew for `RENEW_FRACTION` of the duration stops by itself before anybody takes over.

A Lease cannot keep a leader that stood still from writing once more when it wakes up. The database does: winning begins a term, whose
number is the revision of the write that took the Lease, and writes of lower terms are refused from then on.

Source: Kubernetes `client-go/tools/leaderelection/leaderelection.go`, `k8s.io/api/coordination/v1/types.go`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from controller.config import LEASE_SECONDS_MAX
from controller.store.base import Item, Store
from rkfleet.clock import Clock, format_micro_time, format_time
from rkfleet.errors import AlreadyExists, Conflict, FleetError, NotFound, Unavailable
from rkfleet.kinds.lease import Lease
from rkfleet.meta import Ref
from rkfleet.racing import run_until

__all__ = ["LEASE_NAMESPACE", "Election", "ElectionStore"]

RENEW_FRACTION: Final = 2 / 3  # Of the duration: the leader stops by itself when it could not renew for so long.
TRY_FRACTION: Final = 2 / 15  # Of the duration: how often the leader renews and candidates look, 2 s of 15.
LEASE_NAMESPACE: Final = "rkfleet-system"
LEASE: Final = Ref(Lease.resource.name, LEASE_NAMESPACE, "rkfleet-controller")

_log: Final = logging.getLogger(__name__)

Json = dict[str, Any]


class ElectionStore(Store, Protocol):
    """A store that knows terms."""

    async def take_term(self, term: int) -> None:
        """Begin a term; see `SqlStore.take_term`."""
        ...


class Election:
    """One candidate.

    Args:
        store: Shared by all candidates.
        clock: Measures silence of the holder, and gives the times in the Lease.
        ids: Gives random UUIDs as text.
        identity: Name of this candidate; no two running ones have the same.
        chance: Spreads the tries of several candidates.
        lease_seconds: Duration of the Lease.
    """

    def __init__(
        self,
        store: ElectionStore,
        *,
        clock: Clock,
        ids: Callable[[], str],
        identity: str,
        chance: random.Random,
        lease_seconds: int,
    ) -> None:
        self._store: Final = store
        self._clock: Final = clock
        self._ids: Final = ids
        self._identity: Final = identity
        self._chance: Final = chance
        self._lease_seconds: Final = lease_seconds
        self._try_seconds: Final = lease_seconds * TRY_FRACTION
        self._seen = ""  # Version of the Lease that was seen last,
        self._seen_at = 0.0  # and when that was first.
        self.holder = ""  # Who leads, as far as is known; empty for nobody.

    async def run(self, lead: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Stand for election for as long as this is not cancelled; `lead(term)` runs while this candidate leads.

        Raises:
            Exception: What `lead` raises.
        """
        while True:
            term = await self._win()
            _log.info("leading", extra={"term": term, "identity": self._identity})
            try:
                await run_until(lead(term), self._hold())
            finally:
                await self._release()
            _log.warning("leading no more", extra={"term": term, "identity": self._identity})

    async def _win(self) -> int:
        """Return when this candidate has the Lease, with its term."""
        while True:
            try:
                if (item := await self._try()) is not None:
                    term = int(item.resource_version)
                    await self._store.take_term(term)
                    return term
            except FleetError as error:
                _log.info("the Lease cannot be taken: %s", error.message)
            await self._clock.sleep(self._try_seconds * self._chance.uniform(0.8, 1.2))

    async def _try(self) -> Item | None:
        """Take the Lease if it is free; return it, or None while somebody else has it."""
        try:
            stored = await self._store.get(LEASE)
        except NotFound:
            return await self._create()
        self._look(stored)
        spec = _spec(stored)
        if self.holder and self.holder != self._identity and self._clock.monotonic() < self._seen_at + _seconds(spec, self._lease_seconds):
            return None
        moved = self.holder != self._identity
        taken = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_seconds,
            "acquireTime": self._now(),
            "renewTime": self._now(),
            "leaseTransitions": spec.get("leaseTransitions", 0) + moved,
        }
        return await self._write(stored, taken)

    async def _create(self) -> Item | None:
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_seconds,
            "acquireTime": self._now(),
            "renewTime": self._now(),
            "leaseTransitions": 0,
        }
        metadata = {"name": LEASE.name, "uid": self._ids(), "creationTimestamp": format_time(self._clock.now())}
        try:
            return self._look(await self._store.create(LEASE, {"metadata": metadata, "spec": spec}))
        except AlreadyExists:
            return None

    async def _write(self, stored: Item, spec: Json) -> Item | None:
        """Change the Lease; None when somebody else was faster."""
        try:
            patched = await self._store.patch(LEASE, {"spec": spec}, resource_version=stored.resource_version, now=self._clock.now())
        except (Conflict, NotFound):
            return None
        return self._look(patched)

    async def _hold(self) -> None:
        """Renew the Lease; return when it is lost."""
        ends = self._clock.monotonic() + self._lease_seconds * RENEW_FRACTION
        while (left := ends - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(self._try_seconds, left))
            started = self._clock.monotonic()
            try:
                async with asyncio.timeout(max(0.0, ends - started)):
                    stored = self._look(await self._store.get(LEASE))
                    if self.holder != self._identity:
                        return
                    if await self._write(stored, {"renewTime": self._now()}) is not None:
                        ends = started + self._lease_seconds * RENEW_FRACTION
            except NotFound:
                return
            except (Unavailable, TimeoutError) as error:
                _log.warning("the Lease cannot be renewed: %s", error)

    async def _release(self) -> None:
        """Give the Lease back, so that nobody waits for its end; who cannot is waited for."""
        try:
            stored = self._look(await self._store.get(LEASE))
            if self.holder == self._identity:
                await self._write(stored, {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()})
        except FleetError as error:
            _log.info("the Lease cannot be given back: %s", error.message)

    def _look(self, item: Item) -> Item:
        if item.resource_version != self._seen:
            self._seen, self._seen_at = item.resource_version, self._clock.monotonic()
            self.holder = _spec(item).get("holderIdentity") or ""
        return item

    def _now(self) -> str:
        return format_micro_time(self._clock.now())


def _spec(item: Item) -> Json:
    spec: Json = msgspec.json.decode(item.body).get("spec") or {}
    return spec


def _seconds(spec: Json, default: int) -> float:
    given = spec.get("leaseDurationSeconds")
    return min(float(given), LEASE_SECONDS_MAX) if isinstance(given, int) and given > 0 else float(default)
