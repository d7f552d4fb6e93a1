"""Migrations that are killed: `python -m tests.support.migration_child OLD DIRECTORY`.

For n = 0, 1, … it copies the database OLD into DIRECTORY/n and forks a child that opens it and kills itself before the n-th thing it does:
a statement of any connection, a commit among them, or a change of a file's name. It ends with the first n that is not reached.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import alembic.command
import alembic.config

from controller.store.sql.sqlite import SqliteDatabase
from tests.support.killing import die_before

assert alembic.command is not None  # Imported before the forks, so that each of them is quick.
assert alembic.config is not None


def main() -> None:
    old, directory = map(Path, sys.argv[1:])
    for number in range(1_000):
        path = directory / str(number) / "store.db"
        path.parent.mkdir()
        shutil.copy(old, path)
        child = os.fork()
        if not child:
            die_before(number)
            SqliteDatabase.open(path).close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
