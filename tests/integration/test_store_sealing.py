"""Secrets on the disk: nothing of them is readable, only the right key opens them, and keys are changed without a break."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from controller.store.sql.sealing import KEY_BYTES, Sealing, read_keys
from controller.store.sql.store import SqlStore
from controller.trust.encryption_key import ensure_key_file
from rkfleet.errors import FailedPrecondition, Unavailable
from rkfleet.kinds import KINDS
from rkfleet.meta import Ref, ResourceName
from tests.support.postgres import postgres_url
from tests.support.stores import NOW

SECRETS = ResourceName("secrets")
OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES
VALUE = "correct-horse-battery"
Place = Path | str


def sealing(*keys: bytes) -> Sealing:
    return Sealing(keys, os.urandom, "the key file")


def ref(name: str) -> Ref:
    return Ref(SECRETS, "default", name)


def secret(name: str) -> dict[str, Any]:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": f'{{"stringData": {{"k": "{VALUE}"}}}}'}
    metadata = {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations}
    return {"metadata": metadata, "type": "Opaque", "data": {"k": base64.b64encode(VALUE.encode()).decode()}}


def played(place: Place, keys: Sealing | None, use: Callable[[SqlStore], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with SqlStore.open(place, KINDS, sealing=keys) as store, asyncio.timeout(20):
            await use(store)

    asyncio.run(scenario())


async def write(store: SqlStore) -> None:
    await store.create(ref("a"), secret("a"))
    await store.patch(ref("a"), {"metadata": {"labels": {"site": "lab"}}}, now=NOW)


def on_disk(place: Place) -> bytes:
    """Everything that the database keeps, as bytes."""
    if isinstance(place, Path):
        return b"".join(file.read_bytes() for file in place.parent.iterdir() if file.is_file())
    with psycopg.connect(place) as connection:
        rows = connection.execute("SELECT body FROM objects UNION ALL SELECT body FROM events").fetchall()
    return b"".join(row[0] for row in rows)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return tmp_path / "store.db" if request.param == "sqlite" else postgres_url()


def test_nothing_of_a_value_is_on_the_disk_and_all_of_it_comes_back(place: Place) -> None:
    played(place, sealing(OLD), write)
    kept = on_disk(place)
    assert VALUE.encode() not in kept
    assert base64.b64encode(VALUE.encode()) not in kept
    assert b"site" in kept  # Labels stay readable.

    async def read(store: SqlStore) -> None:
        obj = msgspec.json.decode((await store.get(ref("a"))).body)
        assert base64.b64decode(obj["data"]["k"]).decode() == VALUE
        assert VALUE in obj["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
        assert obj["metadata"]["labels"] == {"site": "lab"}
        assert "sealed" not in obj

    played(place, sealing(OLD), read)


def test_a_store_does_not_open_without_the_key_and_says_which_file(place: Place) -> None:
    played(place, sealing(OLD), write)

    async def nothing(store: SqlStore) -> None:
        raise AssertionError("it opened")

    with pytest.raises(FailedPrecondition, match=r"Secret default/a is sealed with the key .* which is not in the key file"):
        played(place, sealing(NEW), nothing)


def test_a_new_first_key_seals_everything_anew_and_nobody_sees_a_change(place: Place) -> None:
    played(place, None, write)
    assert VALUE.encode() in on_disk(place)
    versions: list[str] = []

    async def read(store: SqlStore) -> None:
        versions.append((await store.get(ref("a"))).resource_version)
        obj = msgspec.json.decode((await store.get(ref("a"))).body)
        assert base64.b64decode(obj["data"]["k"]).decode() == VALUE

    for keys in (sealing(OLD), sealing(NEW, OLD), sealing(NEW, OLD)):
        played(place, keys, read)
    assert versions == ["2"] * 3
    assert _sealed_by(place) == sealing(NEW)._first


def test_a_controller_that_lacks_the_key_of_another_says_so_and_stops_answering() -> None:
    """Old answers would be worse than none; whoever changed the key in one place only reads what to do."""
    place = postgres_url()

    async def scenario() -> None:
        async with (
            SqlStore.open(place, KINDS, sealing=sealing(OLD)) as late,
            SqlStore.open(place, KINDS, sealing=sealing(NEW, OLD)) as early,
        ):
            await early.create(ref("a"), secret("a"))
            with pytest.raises(Unavailable, match=r"Secret default/a is sealed with the key .* put the key file there"):
                await late.create(ref("b"), secret("b"))
            assert "Secret default/a" in late.trouble
            await early.get(ref("a"))

    asyncio.run(scenario())


def _sealed_by(place: Place) -> str:
    if isinstance(place, Path):
        connection = sqlite3.connect(place)
        [(body,)] = connection.execute("SELECT body FROM objects").fetchall()
        connection.close()
    else:
        with psycopg.connect(place) as server:
            [(body,)] = server.execute("SELECT body FROM objects").fetchall()
    key: str = msgspec.json.decode(body)["sealed"]["key"]
    return key


def test_the_row_of_one_secret_is_none_of_another(tmp_path: Path) -> None:
    place = tmp_path / "store.db"

    async def two(store: SqlStore) -> None:
        await store.create(ref("a"), secret("a"))
        await store.create(ref("b"), secret("b"))

    played(place, sealing(OLD), two)
    connection = sqlite3.connect(place)
    rows = dict(connection.execute("SELECT name, body FROM objects").fetchall())
    forged = msgspec.json.decode(rows["b"]) | {"sealed": msgspec.json.decode(rows["a"])["sealed"]}
    connection.execute("UPDATE objects SET body = ? WHERE name = 'b'", (msgspec.json.encode(forged),))
    connection.commit()
    connection.close()
    with pytest.raises(FailedPrecondition, match="Secret default/b was changed in the database"):
        played(place, sealing(OLD), two)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "must have 1 to 16 lines"), ("YQ==", "32 bytes in base64"), ("not base64", "cannot be read"), (None, "cannot be read")],
)
def test_a_key_file_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "encryption.key"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FailedPrecondition, match=re.escape(reason)):
        read_keys(path)


def test_a_key_file_is_made_once_for_its_owner_only_and_never_where_it_must_be_that_of_others(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    with pytest.raises(FailedPrecondition, match=f"{re.escape(str(path))} is not there: copy it from the controller"):
        ensure_key_file(path, os.urandom, may_make=False)
    assert not path.exists()
    ensure_key_file(path, os.urandom, may_make=True)
    assert path.stat().st_mode & 0o777 == 0o600
    made = read_keys(path)
    ensure_key_file(path, os.urandom, may_make=True)
    assert read_keys(path) == made
    path.write_text(f"# A new key, put first by hand.\n{base64.b64encode(NEW).decode()}\n\n{path.read_text()}")
    assert read_keys(path) == (NEW, *made)
