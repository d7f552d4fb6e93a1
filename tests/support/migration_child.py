"""Migrations that are killed: `python -m tests.support.migration_child OLD DIRECTORY`.

For n = 0, 1, … it copies the database OLD into DIRECTORY/n and forks a child that opens it and kills itself before the n-th thing it does:
a statement of any connection, a commit among them, or a change of a file's name. It ends with the first n that is not reached.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any

import alembic.command
import alembic.config

from controller.store.sql.sqlite import SqliteDatabase

assert alembic.command is not None  # Imported before the forks, so that each of them is quick.
assert alembic.config is not None


def die_before(number: int) -> None:
    left = number

    def step(*_: object) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    connect = dbapi2.connect

    def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(step)
        return connection

    sqlite3.connect = dbapi2.connect = connected  # type: ignore[assignment]
    sys.addaudithook(lambda event, _: step() if event in ("os.rename", "os.remove") else None)


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
