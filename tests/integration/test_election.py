"""Who leads: candidates over one store, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from controller.api.namespaces import ensure_namespace
from controller.config import LEASE_SECONDS_MAX
from controller.election import LEASE, LEASE_NAMESPACE, Election
from controller.store.sql.store import SqlStore
from rkfleet.clock import give_way
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from tests.support.api import new_id
from tests.support.clocks import ManualClock
from tests.support.stores import NOW, model, model_ref

SECONDS = 15


class Candidate:
    """One controller: its election, and whether it leads."""

    def __init__(self, name: str, store: SqlStore, clock: ManualClock) -> None:
        self.term = 0
        self.terms: list[int] = []
        self.election = Election(store, clock=clock, ids=new_id, identity=name, chance=random.Random(name), lease_seconds=SECONDS)
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self, term: int) -> None:
        self.term = term
        self.terms.append(term)
        try:
            await asyncio.Event().wait()
        finally:
            self.term = 0

    async def kill(self) -> None:
        """As kill -9 does: nothing is given back."""
        self.election._release = asyncio.Event().set  # type: ignore[assignment, method-assign]
        self.task.cancel()
        await asyncio.wait([self.task])

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class World:
    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.clock = ManualClock()
        self.candidates: list[Candidate] = []

    def candidate(self, name: str) -> Candidate:
        made = Candidate(name, self.store, self.clock)
        self.candidates.append(made)
        return made

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in steps of a tenth, with what they wake done before the next."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            await self.settle()
            assert sum(bool(one.term) for one in self.candidates) <= 1, "two lead"

    async def settle(self) -> None:
        for _ in range(12):
            await give_way()
        await self.store.patch(model_ref("tick"), {"metadata": {"annotations": {"n": new_id()}}}, now=NOW)
        for _ in range(12):
            await give_way()

    async def spec(self) -> dict[str, object]:
        found: dict[str, object] = msgspec.json.decode((await self.store.get(LEASE)).body)["spec"]
        return found


def played(directory: Path, use: Callable[[World], Awaitable[None]]) -> None:
    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        async with SqlStore.open(directory / "store.db", KINDS) as store:
            made = World(store)
            await ensure_namespace(store, LEASE_NAMESPACE, clock=made.clock, ids=new_id)
            await store.create(model_ref("tick"), model("tick"))
            try:
                yield made
            finally:
                for one in made.candidates:
                    await one.stop()

    async def scenario() -> None:
        async with world() as made, asyncio.timeout(30):
            await use(made)

    asyncio.run(scenario())


def test_the_first_leads_and_the_lease_says_so(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one, other = world.candidate("one"), world.candidate("other")
        await world.pass_time(30)
        leader, standby = (one, other) if one.term else (other, one)
        assert leader.term
        assert not standby.term
        spec = await world.spec()
        assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (leader.election._identity, SECONDS, 0)
        assert str(spec["renewTime"]).endswith("Z")
        assert standby.election.holder == leader.election._identity

    played(tmp_path, use)


def test_a_standby_takes_over_from_a_leader_that_died_and_not_before_its_time(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        other = world.candidate("other")
        await world.pass_time(10)
        assert one.term
        await one.kill()
        await world.pass_time(SECONDS - 3)
        assert not other.term
        await world.pass_time(6)
        assert other.term > one.terms[-1]
        assert (await world.spec())["leaseTransitions"] == 1

    played(tmp_path, use)


def test_a_leader_that_stops_gives_the_lease_back(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        other = world.candidate("other")
        await world.pass_time(3)
        await one.stop()
        await world.pass_time(3)
        assert other.term

    played(tmp_path, use)


def test_a_leader_that_cannot_renew_stops_before_anybody_takes_over(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        other = world.candidate("other")
        await world.pass_time(3)
        assert one.term

        async def refused(*arguments: object) -> None:
            raise Unavailable("the network is gone")

        real = one.election._write
        one.election._write = refused  # type: ignore[assignment, method-assign]
        await world.pass_time(SECONDS * 2 / 3 + 0.3)
        assert not one.term
        assert not other.term
        await world.pass_time(SECONDS)
        assert other.term
        one.election._write = real  # type: ignore[method-assign]
        await world.pass_time(SECONDS)
        assert not one.term

    played(tmp_path, use)


def test_writes_of_a_leader_that_stood_still_are_refused(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        still = world.store.leading(one.term)
        await still.create(model_ref("before"), model("before"))
        await one.kill()
        other = world.candidate("other")
        await world.pass_time(SECONDS * 2)
        assert other.term
        with pytest.raises(Unavailable, match="leads no more"):
            await still.create(model_ref("after"), model("after"))
        await world.store.leading(other.term).create(model_ref("other"), model("other"))

    played(tmp_path, use)


def test_an_edited_lease_ends_the_term_of_whoever_lost_it(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        first = one.term
        await world.store.patch(LEASE, {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 4}}, now=NOW)
        await world.pass_time(3)
        assert not one.term
        await world.pass_time(8)
        assert one.term > first

    played(tmp_path, use)


def test_a_holder_that_somebody_made_up_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    async def use(world: World) -> None:
        one = world.candidate("one")
        await world.pass_time(3)
        await world.store.patch(LEASE, {"spec": {"holderIdentity": "nobody", "leaseDurationSeconds": 10**9}}, now=NOW)
        await world.pass_time(3)
        assert not one.term
        world.clock.advance(LEASE_SECONDS_MAX)
        await world.pass_time(3)
        assert one.term

    played(tmp_path, use)
