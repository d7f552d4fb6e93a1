"""A store in PostgreSQL: dumped and restored by PostgreSQL's own programs as the guide says, checked when it opens, compacted in pieces."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller.backups import commands
from controller.store.sql.compaction import COMPACT_EVENTS
from controller.store.sql.jump import JUMP_REVISIONS
from controller.store.sql.postgres import PostgresDatabase
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import Conflict, Expired, FailedPrecondition
from rkfleet.kinds import KINDS
from tests.support.postgres import postgres_url, server
from tests.support.stores import MODELS, NOW, model, model_ref


def program(name: str, *words: str) -> None:
    done = subprocess.run([server()._server.bin_path / name, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


@pytest.mark.processes
def test_a_dump_is_restored_and_the_counter_jumps(tmp_path: Path) -> None:
    """The commands of docs/guides/backup.md; tokens, which are in a schema of their own, stay as they are."""
    url, dump = postgres_url(), str(tmp_path / "rkfleet.dump")
    execute(url, "CREATE SCHEMA rkfleet_trust", "CREATE TABLE rkfleet_trust.tokens (body TEXT)")
    known: dict[str, Any] = {}

    async def make() -> None:
        async with SqlStore.open(url, KINDS) as store:
            for name in "ab":
                await store.create(model_ref(name), model(name))

    async def change() -> None:
        async with SqlStore.open(url, KINDS) as store:
            known["item"] = await store.patch(model_ref("a"), {"spec": {"family": "changed"}}, now=NOW)
            await store.delete(model_ref("b"), now=NOW)
            known["page"] = await store.list(MODELS)

    async def look() -> None:
        async with SqlStore.open(url, KINDS) as store:
            page = await store.list(MODELS)
            assert [(item.ref.name, item.resource_version) for item in page.items] == [("a", "1"), ("b", "2")]
            assert page.resource_version == str(2 + JUMP_REVISIONS)
            with pytest.raises(Expired):
                await store.watch(MODELS, resource_version=known["page"].resource_version)
            with pytest.raises(Conflict):
                await store.patch(model_ref("a"), {"spec": {}}, resource_version=known["item"].resource_version, now=NOW)
            watch = await store.watch(MODELS, resource_version=page.resource_version)
            async with aclosing(watch):
                assert (await store.create(model_ref("c"), model("c"))).resource_version == str(3 + JUMP_REVISIONS)

    asyncio.run(make())
    program("pg_dump", "--format=custom", "--exclude-schema=rkfleet_trust", f"--file={dump}", url)
    asyncio.run(change())
    execute(url, "INSERT INTO rkfleet_trust.tokens VALUES ('revoked')")
    program("pg_restore", "--clean", "--if-exists", f"--dbname={url}", dump)
    commands.run("restore", ["--jump", "--database-url", url], clock=SystemClock(), version="1")
    asyncio.run(look())
    assert rows(url, "SELECT body FROM rkfleet_trust.tokens") == [("revoked",)]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE objects SET store_revision = 7", "object models.rkfleet.dev/default/a has metadata.resourceVersion '1', its row says 7"),
        ("UPDATE objects SET body = '{'::bytea", "object models.rkfleet.dev/default/a cannot be read"),
        ("UPDATE counter SET revision = 0", "holds revision 1 but counts only 0"),
    ],
)
def test_an_object_that_is_not_what_its_row_says_is_refused_by_name(statement: str, why: str) -> None:
    url = postgres_url()

    async def make() -> None:
        async with SqlStore.open(url, KINDS) as store:
            await store.create(model_ref("a"), model("a"))

    asyncio.run(make())
    execute(url, statement)
    database = PostgresDatabase.open(url)
    try:
        with pytest.raises(FailedPrecondition, match=f"is damaged: .*{why}"):
            database.load()
    finally:
        database.close()


def test_one_commit_compacts_a_bounded_number_of_rows() -> None:
    url = postgres_url()

    async def write(count: int, events_max: int) -> None:
        async with SqlStore.open(url, KINDS, log_events_max=events_max) as store:
            for number in range(count // 100):
                writes = (store.patch(model_ref("a"), {"spec": {"n": f"{number}-{n}"}}, now=NOW) for n in range(100))
                await asyncio.gather(*writes)

    async def scenario() -> None:
        async with SqlStore.open(url, KINDS) as store:
            await store.create(model_ref("a"), model("a"))
        await write(600, 10_000)
        async with SqlStore.open(url, KINDS, log_events_max=10) as store:
            await store.patch(model_ref("a"), {"spec": {"n": "last"}}, now=NOW)

    asyncio.run(scenario())
    assert rows(url, "SELECT compacted_revision FROM counter") == [(COMPACT_EVENTS,)]
    assert rows(url, "SELECT min(store_revision) FROM events") == [(COMPACT_EVENTS + 1,)]
