"""Databases of earlier releases are brought forward, whenever that is interrupted, and a copy of them is kept."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from controller.store.sql import tables
from controller.store.sql.database import Database
from controller.store.sql.postgres import PostgresDatabase, address_of
from controller.store.sql.sqlite import SqliteDatabase
from controller.store.sql.store import SqlStore
from rkfleet.errors import FailedPrecondition, Unavailable
from rkfleet.kinds import KINDS
from tests.support.old_stores import BODY, VERSION_1, old_sqlite
from tests.support.postgres import postgres_url
from tests.support.stores import MODELS, model, model_ref


def row(path: Path, query: str) -> tuple[Any, ...]:
    with closing(sqlite3.connect(path)) as connection:
        found: tuple[Any, ...] = connection.execute(query).fetchone()
        return found


def holds_the_old_object(database: Database) -> bool:
    with closing(database):
        contents = database.load()
    return (contents.revision, contents.floor, [item.body for item in contents.items]) == (7, 2, [BODY])


def old_postgres(url: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in VERSION_1:
            connection.execute(statement.format(blob="BYTEA", row_id="BIGINT"))  # type: ignore[arg-type]
        connection.execute("INSERT INTO objects VALUES ('models.rkfleet.dev', 'default', 'a', 'u-a', 7, %s)", (BODY,))
        connection.execute("INSERT INTO events VALUES (7, 'ADDED', 'models.rkfleet.dev', 'default', 'a', 'u-a', %s)", (BODY,))


def columns(engine: sa.Engine) -> dict[str, list[tuple[str, str, bool, object]]]:
    """Return tables with the name, type, nullability and default of their columns."""
    inspector = sa.inspect(engine)
    return {
        name: [(one["name"], str(one["type"]), one["nullable"], one["default"]) for one in inspector.get_columns(name)]
        for name in tables.METADATA.tables
    }


def test_a_sqlite_store_of_the_last_release_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    old_sqlite(path)
    assert holds_the_old_object(SqliteDatabase.open(path))
    assert row(path, "SELECT schema_version, leader_term, fleet_id FROM counter") == (tables.SCHEMA_VERSION, 0, "")
    assert row(path, "SELECT version_num FROM alembic_version") == (f"{tables.SCHEMA_VERSION:04}",)


def test_the_store_is_kept_as_it_was_before_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    old_sqlite(path)
    SqliteDatabase.open(path).close()
    kept = tmp_path / f"store.db.before-{tables.SCHEMA_VERSION}"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert row(kept, "SELECT * FROM counter") == (1, 1, 7, 2)
    assert row(kept, "SELECT body FROM objects") == (BODY,)
    assert row(kept, "PRAGMA integrity_check") == ("ok",)
    assert sorted(os.listdir(tmp_path)) == ["store.db", kept.name]


def test_a_postgres_database_of_the_last_release_is_taken_over() -> None:
    url = postgres_url()
    old_postgres(url)
    assert holds_the_old_object(PostgresDatabase.open(url))
    with psycopg.connect(url) as connection:
        counter = connection.execute("SELECT schema_version, leader_term, fleet_id FROM counter").fetchone()
    assert counter == (tables.SCHEMA_VERSION, 0, "")


def test_migrated_tables_are_those_that_a_new_store_has(tmp_path: Path) -> None:
    old_sqlite(tmp_path / "old.db")
    urls = []
    for name in ("old", "new"):
        SqliteDatabase.open(tmp_path / f"{name}.db").close()
        urls.append(sa.URL.create("sqlite", database=str(tmp_path / f"{name}.db")))
    addresses = [postgres_url(), postgres_url()]
    old_postgres(addresses[0])
    for address in addresses:
        PostgresDatabase.open(address).close()
        urls.append(address_of(address))
    found = []
    for url in urls:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        found.append(columns(engine))
        engine.dispose()
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_the_history_of_migrations_makes_what_a_new_store_has(tmp_path: Path) -> None:
    """From nothing through each version, as `tables.py` makes it at once."""
    from alembic import command
    from alembic.config import Config

    from controller.store.sql import schema

    SqliteDatabase.open(tmp_path / "new.db").close()
    found = []
    for name in ("history", "new"):
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(tmp_path / f"{name}.db")), poolclass=sa.NullPool)
        if name == "history":
            config = Config()
            config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                (head,) = connection.execute(sa.text("SELECT version_num FROM alembic_version")).one()
                assert head == f"{tables.SCHEMA_VERSION:04}"
        found.append(columns(engine))
        engine.dispose()
    assert found[0] == found[1]


@pytest.mark.processes
def test_a_migration_that_is_killed_anywhere_is_done_by_the_next_start(tmp_path: Path) -> None:
    old, kills = tmp_path / "old.db", tmp_path / "kills"
    old_sqlite(old)
    kills.mkdir()
    subprocess.run([sys.executable, "-m", "tests.support.migration_child", old, kills], check=True, timeout=100)
    versions = []
    for number in range(len(os.listdir(kills))):
        path = kills / str(number) / "store.db"
        versions.append(row(path, "SELECT schema_version FROM counter")[0])
        assert holds_the_old_object(SqliteDatabase.open(path)), number
        assert row(path, "SELECT schema_version FROM counter") == (tables.SCHEMA_VERSION,), number
        assert row(path, "PRAGMA integrity_check") == ("ok",)
        if versions[-1] == 1:
            assert row(path.with_name(f"store.db.before-{tables.SCHEMA_VERSION}"), "SELECT schema_version FROM counter") == (1,)
        assert not list(path.parent.glob(".*")), "nothing of the interrupted one is left"
    assert versions == sorted(versions)
    assert len(versions) > 20
    assert set(versions) == {1, tables.SCHEMA_VERSION}


@pytest.mark.processes
def test_a_postgres_database_is_untouched_until_its_migration_is_committed() -> None:
    url = postgres_url()
    old_postgres(url)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.migration_child", url], check=True, timeout=100, stdout=subprocess.PIPE, text=True
    )
    versions = [int(line) for line in done.stdout.split()]
    assert versions == [1] * (len(versions) - 1) + [tables.SCHEMA_VERSION]
    assert len(versions) > 10
    assert holds_the_old_object(PostgresDatabase.open(url))


def test_without_a_copy_there_is_no_migration(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    old_sqlite(path)
    (tmp_path / f".store.db.before-{tables.SCHEMA_VERSION}.partial").mkdir()  # Where the copy is made nothing can be written.
    with pytest.raises(Unavailable, match="cannot be copied"):
        SqliteDatabase.open(path)
    assert row(path, "SELECT schema_version FROM counter") == (1,)


def test_a_newer_postgres_database_is_refused_and_untouched() -> None:
    url = postgres_url()
    PostgresDatabase.open(url).close()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE counter SET schema_version = 99")
    with pytest.raises(FailedPrecondition, match=f"schema version 99, this rkfleet knows {tables.SCHEMA_VERSION}: a newer release"):
        PostgresDatabase.open(url)


def test_alembic_is_not_loaded_for_tables_that_are_ours(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from controller.store.sql.sqlite import SqliteDatabase;"
        " SqliteDatabase.open(Path(sys.argv[1])).close(); SqliteDatabase.open(Path(sys.argv[1])).close();"
        " sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "store.db"], check=True, timeout=60)


def test_a_migrated_store_goes_on(tmp_path: Path) -> None:
    old_sqlite(tmp_path / "store.db")

    async def use() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            assert (await store.create(model_ref("b"), model("b"))).resource_version == "8"
            assert [item.ref.name for item in (await store.list(MODELS)).items] == ["a", "b"]

    asyncio.run(use())
