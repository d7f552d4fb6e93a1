"""A process that kills itself before the n-th thing that it does to its files."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from sqlite3 import dbapi2
from typing import Any

import psycopg


def die_before(number: int, events: Sequence[str] = ("os.rename", "os.remove")) -> None:
    """Kill this process before the n-th statement of SQLite or PostgreSQL (commits among them) or audit event of these names."""
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
    execute = psycopg.Cursor.execute

    def executed(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        step()
        return execute(cursor, *args, **kwargs)

    psycopg.Cursor.execute = executed  # type: ignore[method-assign]
    sys.addaudithook(lambda event, _: step() if event in events else None)
