"""The tables of the store, as the newest of `migrations/` leaves them.

`objects` holds what is, `events` what changed (append-only, its oldest rows are compacted), `counter` the one row from which revisions
are taken inside the transaction. An object's `body` is the whole object as JSON, whose `metadata.resourceVersion` is its
`store_revision`. Times and ids come with the objects; the database makes none.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, Table, Text

__all__ = ["METADATA", "SCHEMA_VERSION", "counter", "events", "objects"]

SCHEMA_VERSION: Final = 2

METADATA: Final = MetaData()

counter: Final = Table(
    "counter",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("compacted_revision", BigInteger, nullable=False),
    Column("leader_term", BigInteger, nullable=False, server_default="0"),
    Column("fleet_id", Text, nullable=False, server_default=""),
)

objects: Final = Table(
    "objects",
    METADATA,
    Column("resource", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("store_revision", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("resource", "namespace", "name"),
)

events: Final = Table(
    "events",
    METADATA,
    # INTEGER makes it SQLite's row id: rows lie in the order of their revisions, appended and compacted by ranges.
    Column("store_revision", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
