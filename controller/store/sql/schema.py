"""Making the tables, bringing older ones forward, and refusing newer ones; one history for SQLite and PostgreSQL.

In: a connection inside a transaction in which nobody else writes. Out: tables of `SCHEMA_VERSION`. The databases call it when they open.
`counter.schema_version` says what is stored; only where that differs from ours Alembic is imported (a third of a second) and runs what is
in `migrations/`, whose revision `000N` makes version N. Everything happens in the caller's transaction, the version with it: a program that
is killed in the middle leaves the tables as they were.

Alembic's own table of versions is derived: it is stamped from `counter.schema_version`, so databases that were made without it are taken
over. Source: https://alembic.sqlalchemy.org/en/latest/cookbook.html (sharing a connection with programmatic migration commands)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from controller.store.sql import tables
from rkfleet.errors import FailedPrecondition

__all__ = ["prepare"]

NAMES_SHOWN_MAX: Final = 5  # Enough to recognize whose database it is.

_log: Final = logging.getLogger(__name__)


def prepare(connection: sa.Connection, before_migration: Callable[[int], None], *, name: str) -> None:
    """Leave the tables of this release, made or migrated in the caller's transaction.

    Args:
        connection: Inside a transaction that keeps other writers out.
        before_migration: Called with the version that tables are brought to, before the first change; what it raises stops everything.
        name: What messages call the database.

    Raises:
        FailedPrecondition: The database is another program's, or of a newer release.
    """
    names = set(sa.inspect(connection).get_table_names())
    if not names:
        tables.METADATA.create_all(connection)
        first = {"id": 1, "schema_version": tables.SCHEMA_VERSION, "revision": 0, "compacted_revision": 0}
        connection.execute(sa.insert(tables.counter), first)
        return
    if tables.counter.name not in names:
        raise FailedPrecondition(
            f"{name} is a database of another program (tables {', '.join(sorted(names)[:NAMES_SHOWN_MAX])}); name one of your own"
        )
    version = connection.execute(sa.select(tables.counter.c.schema_version)).scalar_one()
    if version > tables.SCHEMA_VERSION:
        raise FailedPrecondition(
            f"{name} has schema version {version}, this rkfleet knows {tables.SCHEMA_VERSION}: a newer release wrote it; install that"
            " release or a newer one, or restore what was kept before the upgrade (rkfleet controller restore)"
        )
    if version < tables.SCHEMA_VERSION:
        before_migration(tables.SCHEMA_VERSION)
        _migrate(connection, version)
        connection.execute(sa.update(tables.counter).values(schema_version=tables.SCHEMA_VERSION))
        _log.info("migrated %s from schema version %d to %d", name, version, tables.SCHEMA_VERSION)


def _migrate(connection: sa.Connection, version: int) -> None:
    from alembic import command  # noqa: PLC0415 (a third of a second that only a migration needs)
    from alembic.config import Config  # noqa: PLC0415 (as above)

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.stamp(config, _revision(version))
    command.upgrade(config, _revision(tables.SCHEMA_VERSION))


def _revision(version: int) -> str:
    return f"{version:04}"
