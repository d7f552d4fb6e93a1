"""Databases as earlier releases left them, made by the statements that those ran."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

VERSION_1: Final = (
    """CREATE TABLE counter (
        id INTEGER NOT NULL CHECK (id = 1), schema_version INTEGER NOT NULL, revision BIGINT NOT NULL, compacted_revision BIGINT NOT NULL,
        PRIMARY KEY (id))""",
    """CREATE TABLE objects (
        resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL, store_revision BIGINT NOT NULL,
        body {blob} NOT NULL, PRIMARY KEY (resource, namespace, name))""",
    """CREATE TABLE events (
        store_revision {row_id} NOT NULL, type TEXT NOT NULL, resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        uid TEXT NOT NULL, body {blob} NOT NULL, PRIMARY KEY (store_revision))""",
    "INSERT INTO counter VALUES (1, 1, 7, 2)",
)
BODY: Final = (
    b'{"apiVersion":"rkfleet.dev/v1alpha1","kind":"Model","metadata":{"name":"a","namespace":"default","resourceVersion":"7","uid":"u-a"}}'
)


def old_sqlite(path: Path) -> None:
    """Make the file that version 1 with one object and one event leaves."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        for statement in VERSION_1:
            connection.execute(statement.format(blob="BLOB", row_id="INTEGER"))
        connection.execute("INSERT INTO objects VALUES ('models.rkfleet.dev', 'default', 'a', 'u-a', 7, ?)", (BODY,))
        connection.execute("INSERT INTO events VALUES (7, 'ADDED', 'models.rkfleet.dev', 'default', 'a', 'u-a', ?)", (BODY,))
