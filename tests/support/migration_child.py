"""Migrations that are killed: each n-th child kills itself before the n-th statement, commits among them, or change of a file's name.

The first n that is not reached ends it.

- `python -m tests.support.migration_child OLD DIRECTORY` copies the database OLD to DIRECTORY/n/store.db and opens it.
- `python -m tests.support.migration_child URL` opens the database there and prints its schema version after each of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import alembic.command
import alembic.config
import psycopg

from controller.store.sql.postgres import PostgresDatabase
from controller.store.sql.sqlite import SqliteDatabase
from tests.support.killing import die_before

assert alembic.command is not None  # Imported before the forks, so that each of them is quick.
assert alembic.config is not None


def main() -> None:
    place, *more = sys.argv[1:]
    for number in range(1_000):
        path = Path(*more, str(number), "store.db")
        if more:
            path.parent.mkdir()
            shutil.copy(place, path)
        child = os.fork()
        if not child:
            die_before(number)
            (SqliteDatabase.open(path) if more else PostgresDatabase.open(place)).close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not more:
            with psycopg.connect(place) as connection:
                print(*connection.execute("SELECT schema_version FROM counter").fetchone() or ())
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
