"""Several controllers on one PostgreSQL database: each shows what any of them acknowledged, in one order, and only one of them leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from controller.store.base import Selection
from controller.store.sql.freshness import Freshness
from controller.store.sql.store import SqlStore
from rkfleet.errors import AlreadyExists, Conflict, Expired, Unavailable
from rkfleet.kinds import KINDS
from tests.support.postgres import postgres_url
from tests.support.stores import MODELS, NOW, body, model, model_ref, take, told

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rkfleet' AND datname = current_database()"
Use = Callable[[SqlStore, SqlStore], Awaitable[None]]


@contextlib.asynccontextmanager
async def two(url: str, **options: int) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    async with SqlStore.open(url, KINDS, **options) as one, SqlStore.open(url, KINDS, **options) as other, asyncio.timeout(30):
        yield one, other


def played(use: Use, url: str = "", **options: int) -> None:
    async def scenario() -> None:
        async with two(url or postgres_url(), **options) as (one, other):
            await use(one, other)

    asyncio.run(scenario())


def test_what_one_acknowledged_the_other_shows_at_once() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        for number in range(20):
            writer, reader = (one, other) if number % 2 else (other, one)
            item = await writer.create(model_ref(f"m{number}"), model(f"m{number}"))
            assert await reader.get(model_ref(f"m{number}")) == item
            page = await reader.list(MODELS)
            assert len(page.items) == number + 1
            assert page.resource_version == item.resource_version

    played(use)


def test_a_precondition_is_judged_on_what_the_other_wrote() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        first = await one.create(model_ref("a"), model("a"))
        changed = await other.patch(model_ref("a"), {"spec": {"family": "llama"}}, resource_version=first.resource_version, now=NOW)
        with pytest.raises(Conflict):
            await one.patch(model_ref("a"), {"spec": {"family": "phi"}}, resource_version=first.resource_version, now=NOW)
        assert await one.get(model_ref("a")) == changed

    played(use)


def test_of_many_who_race_with_one_version_one_wins() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        item = await one.create(model_ref("a"), model("a"))
        for number in range(10):
            racing = [
                store.patch(model_ref("a"), {"spec": {"family": f"{number}-{index}"}}, resource_version=item.resource_version, now=NOW)
                for index, store in enumerate((one, other) * 5)
            ]
            results = await asyncio.gather(*racing, return_exceptions=True)
            won = [result for result in results if not isinstance(result, Exception)]
            assert len(won) == 1
            assert all(isinstance(result, Conflict) for result in results if isinstance(result, Exception))
            item = await other.get(model_ref("a"))
            assert item == won[0]

    played(use)


def test_watches_of_both_see_one_order_of_everything() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        watches = [await store.watch(MODELS, resource_version="0") for store in (one, other)]
        writes = [
            store.create(model_ref(f"{name}{number}"), model(f"{name}{number}"))
            for number in range(40)
            for name, store in (("a", one), ("b", other))
        ]
        await asyncio.gather(*writes)
        seen = [[change.resource_version for change in await take(watch, 80)] for watch in watches]
        assert seen[0] == seen[1] == [str(number) for number in range(1, 81)]
        for watch in watches:
            await watch.aclose()

    played(use)


def test_a_page_and_a_watch_go_on_at_the_other() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        for name in "abcd":
            await one.create(model_ref(name), model(name))
        page = await one.list(MODELS, limit=2)
        await one.patch(model_ref("d"), {"spec": {"family": "changed"}}, now=NOW)
        rest = await other.list(MODELS, limit=2, continue_token=page.continue_token)
        assert [item.ref.name for item in (*page.items, *rest.items)] == list("abcd")
        assert body(rest.items[1])["spec"]["family"] == "qwen2"  # As it was at the moment of the first page.
        newest = await one.create(model_ref("e"), model("e"))
        watch = await other.watch(MODELS, Selection(), resource_version=newest.resource_version)
        async with contextlib.aclosing(watch):
            await one.create(model_ref("f"), model("f"))
            assert told(await take(watch, 1)) == [("ADDED", "f")]

    played(use)


def test_one_that_was_away_for_longer_than_the_log_starts_anew_and_its_watches_expire() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        first = await one.create(model_ref("kept"), model("kept"))
        watch = await other.watch(MODELS, resource_version=first.resource_version)
        async with contextlib.aclosing(watch):
            release = hold_writer(other)
            for number in range(30):
                await one.create(model_ref(f"m{number:02}"), model(f"m{number:02}"))
            release()
            assert len((await other.list(MODELS)).items) == 31
            with pytest.raises(Expired):
                await take(watch, 30)
        assert (await other.create(model_ref("last"), model("last"))).resource_version == "32"

    played(use, log_events_max=5)


def hold_writer(store: SqlStore) -> Callable[[], None]:
    """Keep the writer thread of a store from looking at the database, as if its machine stood still."""
    import threading

    gate = threading.Event()
    writer = store._submit.__self__  # type: ignore[union-attr]
    tail, begin = writer._database.tail, writer._database.begin

    def late_tail(revision: int) -> object:
        gate.wait(20)
        return tail(revision)

    def late_begin(revision: int, *, unsure: bool) -> object:
        gate.wait(20)
        return begin(revision, unsure=unsure)

    writer._database.tail, writer._database.begin = late_tail, late_begin
    return gate.set


def test_a_write_of_an_old_leader_is_refused() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        await one.take_term(5)
        old = one.leading(5)
        await old.create(model_ref("a"), model("a"))
        await other.take_term(7)
        with pytest.raises(Unavailable, match="leads no more: its term is 5, the newest is 7"):
            await old.create(model_ref("b"), model("b"))
        with pytest.raises(Unavailable, match="leads no more"):
            await one.take_term(6)
        await other.leading(7).create(model_ref("c"), model("c"))
        await one.create(model_ref("d"), model("d"))  # Anybody else may write through it.
        assert [item.ref.name for item in (await other.list(MODELS)).items] == ["a", "c", "d"]

    played(use)


def test_the_database_itself_refuses_a_batch_of_an_old_term() -> None:
    """Even if the check in this process were wrong, or the term moved between the check and the commit."""
    url = postgres_url()

    async def use(one: SqlStore, other: SqlStore) -> None:
        await one.take_term(5)
        database = one._submit.__self__._database  # type: ignore[union-attr]
        begin = database.begin

        def deceived(revision: int, *, unsure: bool) -> object:
            tail = begin(revision, unsure=unsure)
            database.leave()  # As if the lock did not hold.
            with psycopg.connect(url) as connection:
                connection.execute("UPDATE counter SET leader_term = 9")
            return tail

        database.begin = deceived
        with pytest.raises(Unavailable, match="changed by another program since revision 0 of term 5"):
            await one.leading(5).create(model_ref("a"), model("a"))
        assert not (await other.list(MODELS)).items

    played(use, url)


def test_connections_that_are_cut_are_made_anew() -> None:
    url = postgres_url()

    async def use(one: SqlStore, other: SqlStore) -> None:
        await one.create(model_ref("a"), model("a"))
        for number in range(3):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(CUT)
            await written(one, f"b{number}")
            assert (await other.get(model_ref(f"b{number}"))).ref.name == f"b{number}"
        watch = await other.watch(MODELS, resource_version="0")
        async with contextlib.aclosing(watch):
            assert told(await take(watch, 4)) == [("ADDED", name) for name in ("a", "b0", "b1", "b2")]

    played(use, url)


async def written(store: SqlStore, name: str) -> None:
    """Write until it is there; a commit of which nobody knew may have made it."""
    while True:
        try:
            await store.create(model_ref(name), model(name))
        except Unavailable:
            continue
        except AlreadyExists:
            assert (await store.get(model_ref(name))).uid == f"uid-{name}"
        return


def test_nobody_stops_to_listen_whatever_a_connection_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is cut at a bad moment raises errors of the system, too; a watch must not stand still by it."""
    follow, failures = Freshness._follow, iter([ValueError("Invalid file descriptor: -1"), OSError("Bad file descriptor")] * 2)

    async def broken(self: Freshness) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        await follow(self)

    monkeypatch.setattr(Freshness, "_follow", broken)

    async def use(one: SqlStore, other: SqlStore) -> None:
        watch = await other.watch(MODELS, resource_version="0")
        async with contextlib.aclosing(watch):
            await one.create(model_ref("a"), model("a"))
            assert told(await take(watch, 1)) == [("ADDED", "a")]
            await one.create(model_ref("b"), model("b"))
            assert told(await take(watch, 1)) == [("ADDED", "b")]

    played(use)


def test_a_read_over_a_connection_that_is_gone_is_asked_again() -> None:
    async def use(one: SqlStore, other: SqlStore) -> None:
        await one.create(model_ref("a"), model("a"))
        freshness = other._freshness
        assert freshness is not None
        asked = freshness._revision
        moments = iter([ValueError("Invalid file descriptor: -1"), None, OSError("Bad file descriptor"), None])

        async def revision() -> int:
            if (failure := next(moments)) is not None:
                raise failure
            return await asked()

        freshness._revision = revision  # type: ignore[method-assign]
        for _ in range(2):
            assert (await other.get(model_ref("a"))).ref.name == "a"
        assert next(moments, "all are used") == "all are used"

    played(use)
