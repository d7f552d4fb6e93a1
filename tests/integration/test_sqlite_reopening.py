"""A store that is closed and opened again, its log that is kept short, and files that are no store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from controller.store.base import Selection
from controller.store.sql.compaction import COMPACT_EVENTS
from controller.store.sql.database import Batch
from controller.store.sql.sqlite import SqliteDatabase
from controller.store.sql.store import SqlStore
from rkfleet.errors import Expired, FailedPrecondition, FleetError, Unavailable
from rkfleet.kinds import KINDS
from rkfleet.meta import parse_selector
from tests.support.stores import MODELS, NOW, body, model, model_ref, take, told


def opened(path: Path, use: Callable[[SqlStore], Awaitable[None]], **options: int) -> None:
    """Open the store, use it, close it."""

    async def scenario() -> None:
        async with SqlStore.open(path, KINDS, **options) as store, asyncio.timeout(30):  # type: ignore[arg-type]
            await use(store)

    asyncio.run(scenario())


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


async def create_three(store: SqlStore) -> None:
    for name in "abc":
        await store.create(model_ref(name), model(name, labels={"name": name}))
    await store.delete(model_ref("b"), now=NOW)


def test_objects_and_revisions_continue(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)

    async def use(store: SqlStore) -> None:
        page = await store.list(MODELS)
        assert [item.ref.name for item in page.items] == ["a", "c"]
        assert page.resource_version == "4"
        assert page.items[0].labels == {"name": "a"}
        assert body(page.items[0])["spec"]["family"] == "qwen2"
        assert (await store.create(model_ref("d"), model("d"))).resource_version == "5"

    opened(path, use)


def test_a_watch_resumes_from_before_the_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)

    async def use(store: SqlStore) -> None:
        watch = await store.watch(MODELS, resource_version="1")
        async with aclosing(watch):
            await store.create(model_ref("d"), model("d"))
            assert told(await take(watch, 4)) == [("ADDED", "b"), ("ADDED", "c"), ("DELETED", "b"), ("ADDED", "d")]

    opened(path, use)


def test_a_watch_by_labels_from_before_the_restart_is_expired(tmp_path: Path) -> None:
    """What an object was before a change is not in the log, so whether it started to match cannot be told."""
    path = tmp_path / "store.db"
    opened(path, create_three)

    async def use(store: SqlStore) -> None:
        selection = Selection(labels=parse_selector("name=a"))
        with pytest.raises(Expired, match="before the last start"):
            await store.watch(MODELS, selection, resource_version="1")
        watch = await store.watch(MODELS, selection, resource_version="4")
        await watch.aclose()

    opened(path, use)


def test_a_page_from_before_the_restart_is_expired_when_something_changed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    tokens: list[str] = []

    async def list_first(store: SqlStore) -> None:
        await create_three(store)
        tokens.append((await store.list(MODELS, limit=1)).continue_token)

    async def list_next(store: SqlStore) -> None:
        assert [item.ref.name for item in (await store.list(MODELS, limit=1, continue_token=tokens[0])).items] == ["c"]
        await store.create(model_ref("d"), model("d"))

    async def list_too_late(store: SqlStore) -> None:
        with pytest.raises(Expired):
            await store.list(MODELS, limit=1, continue_token=tokens[0])

    opened(path, list_first)
    opened(path, list_next)
    opened(path, list_too_late)


def test_the_log_is_kept_short_and_what_it_dropped_is_expired(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    kept = 50

    async def write_many(store: SqlStore) -> None:
        await store.create(model_ref("a"), model("a"))
        for round_ in range(8):
            await asyncio.gather(*(store.patch(model_ref("a"), {"spec": {"n": f"{round_}-{n}"}}, now=NOW) for n in range(60)))
        with pytest.raises(Expired, match="compacted"):
            await store.watch(MODELS, resource_version="1")
        revision = int((await store.list(MODELS)).resource_version)
        watch = await store.watch(MODELS, resource_version=str(revision - kept))
        async with aclosing(watch):
            assert len(await take(watch, kept)) == kept

    opened(path, write_many, log_events_max=kept)
    ((count, oldest),) = rows(path, "SELECT count(*), min(store_revision) FROM events")
    ((revision, compacted),) = rows(path, "SELECT revision, compacted_revision FROM counter")
    assert isinstance(count, int)
    assert kept <= count < 2 * kept + 128
    assert (revision, oldest) == (481, compacted + 1)  # type: ignore[operator]

    async def look(store: SqlStore) -> None:
        with pytest.raises(Expired, match="compacted"):
            await store.watch(MODELS, resource_version=str(int(str(compacted)) - 1))
        watch = await store.watch(MODELS, resource_version=str(compacted))
        async with aclosing(watch):
            assert len(await take(watch, int(str(count)))) == count

    opened(path, look, log_events_max=kept)


def test_the_log_is_kept_below_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def write_big(store: SqlStore) -> None:
        await store.create(model_ref("a"), model("a"))
        for n in range(30):
            await store.patch(model_ref("a"), {"spec": {"n": n, "pad": "x" * 10_000}}, now=NOW)

    opened(path, write_big, log_bytes_max=100_000)
    ((size,),) = rows(path, "SELECT sum(length(body)) FROM events")
    assert isinstance(size, int)
    assert size <= 100_000 + 2 * 10_500


def test_one_commit_compacts_a_bounded_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def write_many(store: SqlStore) -> None:
        await store.create(model_ref("a"), model("a"))
        for round_ in range(6):
            await asyncio.gather(*(store.patch(model_ref("a"), {"spec": {"n": f"{round_}-{n}"}}, now=NOW) for n in range(100)))

    async def write_one(store: SqlStore) -> None:
        await store.patch(model_ref("a"), {"spec": {"n": "last"}}, now=NOW)

    opened(path, write_many)
    opened(path, write_one, log_events_max=10)
    assert rows(path, "SELECT compacted_revision FROM counter") == [(COMPACT_EVENTS,)]


def test_a_slow_watch_is_expired_and_the_others_are_not(tmp_path: Path) -> None:
    async def use(store: SqlStore) -> None:
        slow = await store.watch(MODELS, resource_version="0")
        quick = await store.watch(MODELS, resource_version="0")
        async with aclosing(slow), aclosing(quick):
            for n in range(60):
                await store.create(model_ref(f"m{n}"), model(f"m{n}"))
                await take(quick, 1)
            with pytest.raises(Expired, match="fell behind"):
                await take(slow, 60)

    opened(tmp_path / "store.db", use, log_events_max=10)


def test_watches_end_when_the_store_closes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks, SqlStore.open(tmp_path / "store.db", KINDS) as store:
            watch = await store.watch(MODELS, resource_version="0")
            following = tasks.create_task(count(watch))
            await store.create(model_ref("a"), model("a"))
        assert following.result() <= 1

    async def count(watch: object) -> int:
        return len([change async for change in watch])  # type: ignore[attr-defined]

    asyncio.run(scenario())


async def nothing(_store: SqlStore) -> None:
    return


def refused(path: Path, error: type[FleetError], why: str) -> None:
    with pytest.raises(error, match=why):
        opened(path, nothing)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)
    execute(path, "UPDATE counter SET schema_version = 3")
    refused(path, FailedPrecondition, "schema version 3, this rkfleet knows 2: a newer release wrote it")
    assert rows(path, "SELECT count(*) FROM objects") == [(2,)]


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    execute(path, "CREATE TABLE songs (title TEXT)")
    refused(path, FailedPrecondition, r"database of another program \(tables songs\)")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"x" * 8192)
    refused(path, FailedPrecondition, "damaged or no database")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def write_many(store: SqlStore) -> None:
        await asyncio.gather(*(store.create(model_ref(f"m{n}"), model(f"m{n}", spec={"pad": "x" * 2000})) for n in range(100)))

    opened(path, write_many)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    refused(path, FailedPrecondition, "restore a backup")


def test_an_object_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)
    execute(path, "UPDATE objects SET body = x'7b22' WHERE name = 'a'")
    refused(
        path,
        FailedPrecondition,
        "object models.rkfleet.dev/default/a cannot be read: .*; restore a backup of it: rkfleet controller restore",
    )


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE objects SET store_revision = 2 WHERE name = 'a'", "a has metadata.resourceVersion '1', its row says 2;"),
        ("UPDATE objects SET uid = 'u' WHERE name = 'a'", "a has metadata.uid '.*', its row says 'u';"),
        ("UPDATE objects SET name = 'b' WHERE name = 'a'", "default/b calls itself default/a;"),
        (
            "UPDATE objects SET body = CAST(replace(body, '}', ']') AS BLOB)",
            "a cannot be read: .*; object models.rkfleet.dev/default/c cannot",
        ),
        ("UPDATE objects SET body = CAST(replace(body, 'name', x'ff') AS BLOB) WHERE name = 'a'", "a cannot be read: .*utf-8"),
        ("UPDATE events SET body = CAST(replace(body, 'name', x'ff') AS BLOB)", "cannot be read .*utf-8"),
        ("UPDATE counter SET revision = 2", "it holds revision 4 but counts only 2"),
    ],
)
def test_an_object_that_is_not_what_its_row_says_is_refused_by_name(tmp_path: Path, statement: str, why: str) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)
    execute(path, statement)
    refused(path, FailedPrecondition, f"is damaged: .*{why}.* rkfleet controller restore --data-dir DIR --from FILE")


def test_a_counter_that_is_behind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened(path, create_three)
    execute(path, "UPDATE counter SET revision = 2")
    refused(path, FailedPrecondition, "holds revision 4 but counts only 2")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent" / "store.db", Unavailable, "absent/store.db cannot be opened")


def test_a_commit_that_failed_and_is_there_after_all_is_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller was told that nobody knows; everybody else sees it before anything that comes later."""
    real, failures = SqliteDatabase.commit, iter([True])

    def commit(database: SqliteDatabase, batch: Batch) -> None:
        real(database, batch)
        if len(batch.entries) > 0 and next(failures, False):
            raise Unavailable("the answer of the disk was lost")

    monkeypatch.setattr(SqliteDatabase, "commit", commit)

    async def use(store: SqlStore) -> None:
        with pytest.raises(Unavailable, match="was lost"):
            await store.create(model_ref("a"), model("a"))
        assert (await store.create(model_ref("b"), model("b"))).resource_version == "2"
        assert not store.trouble
        watch = await store.watch(MODELS, resource_version="0")
        async with aclosing(watch):
            assert told(await take(watch, 2)) == [("ADDED", "a"), ("ADDED", "b")]
        assert [item.ref.name for item in (await store.list(MODELS)).items] == ["a", "b"]

    opened(tmp_path / "store.db", use)


def test_a_file_that_another_program_changes_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def use(store: SqlStore) -> None:
        await store.create(model_ref("a"), model("a"))
        await asyncio.to_thread(execute, path, "UPDATE counter SET revision = 7")
        with pytest.raises(Unavailable, match="changed by another program"):
            await store.create(model_ref("b"), model("b"))
        await asyncio.to_thread(execute, path, "UPDATE counter SET revision = 1")
        await store.create(model_ref("b"), model("b"))
        assert not store.trouble

    opened(path, use)


def test_a_file_that_another_program_locks_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def use(store: SqlStore) -> None:
        await store.create(model_ref("a"), model("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="another program holds it locked"):
                await store.create(model_ref("b"), model("b"))
            assert "locked" in store.trouble
            assert len((await store.list(MODELS)).items) == 1
        await store.create(model_ref("b"), model("b"))
        assert not store.trouble

    opened(path, use)
