"""Backups and restores of a controller's data directory, with real stores and real token files."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.backups import commands
from controller.backups.archive import part_of, read_manifest, write_archive
from controller.backups.manifest import FORMAT, Manifest
from controller.backups.restoring import Restored, refuse_half_restored, restore_backup
from controller.backups.taking import Taken, take_backup
from controller.store.base import Item
from controller.store.sql.copying import examined
from controller.store.sql.jump import JUMP_REVISIONS
from controller.store.sql.store import SqlStore
from controller.trust.tokens import Tokens
from rkfleet.clock import SystemClock
from rkfleet.errors import Conflict, Expired, FailedPrecondition, FleetError, PermissionDenied, Unauthenticated, Unavailable
from rkfleet.kinds import KINDS
from rkfleet.process import lock_data_dir
from tests.support.old_stores import old_sqlite
from tests.support.postgres import postgres_url
from tests.support.stores import MODELS, NOW, board, board_ref, body, model, model_ref, take

CLOCK = SystemClock()


def using(directory: Path, use: Callable[[SqlStore], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with SqlStore.open(directory / "store.db", KINDS) as store, asyncio.timeout(60):
            await use(store)

    asyncio.run(scenario())


async def make_three(store: SqlStore) -> None:
    for name in "abc":
        await store.create(model_ref(name), model(name))


def installation(directory: Path, fleet: str = "f-1") -> Path:
    """Make a data directory as a controller leaves it."""
    (directory / "pki").mkdir(parents=True)
    (directory / "pki" / "fleet.json").write_text(json.dumps({"fleetId": fleet}))
    (directory / "pki" / "boards-ca.key").write_text(f"key of {fleet}")
    (directory / "encryption.key").write_text("key of secrets")
    using(directory, make_three)
    return directory


def tokens_of(directory: Path) -> Tokens:
    return Tokens(directory / "tokens.json", CLOCK, os.urandom)


def backup(directory: Path, target: Path, **options: bool) -> Taken:
    return take_backup(directory, target, clock=CLOCK, version="1.2.3", **options)


def restore(directory: Path, source: Path) -> Restored:
    with lock_data_dir(directory):
        return restore_backup(directory, source, now=CLOCK.now())


def objects(directory: Path) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    async def look(store: SqlStore) -> None:
        found.extend((item.ref.name, body(item)) for item in (await store.list(MODELS)).items)

    using(directory, look)
    return found


def row(path: Path, query: str) -> tuple[Any, ...]:
    with closing(sqlite3.connect(path)) as connection:
        found: tuple[Any, ...] = connection.execute(query).fetchone()
        return found


def test_a_machine_is_rebuilt_from_a_backup(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    before = objects(here)
    taken = backup(here, tmp_path / "b.tar")
    assert taken.manifest.store is not None
    assert (taken.manifest.fleet_id, taken.manifest.store.revision, taken.manifest.store.objects) == ("f-1", 3, 3)
    assert taken.bytes == (tmp_path / "b.tar").stat().st_size
    done = restore(tmp_path / "there", tmp_path / "b.tar")
    assert objects(tmp_path / "there") == before
    assert done.aside is None
    for name in ("pki/fleet.json", "pki/boards-ca.key", "encryption.key"):
        assert (tmp_path / "there" / name).read_bytes() == (here / name).read_bytes()
        assert stat.S_IMODE((tmp_path / "there" / name).stat().st_mode) == 0o600


def test_a_backup_is_one_private_file_that_any_tar_reads(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    target = tmp_path / "b.tar"
    backup(here, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["b.tar", "here"]
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["manifest.json", "store.db", "encryption.key", "pki/boards-ca.key", "pki/fleet.json"]
    with pytest.raises(FailedPrecondition, match=r"b\.tar is there already; name another file"):
        backup(here, target)


def test_a_backup_of_the_store_alone_has_no_secrets(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar", with_files=False)
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert tar.getnames() == ["manifest.json", "store.db"]
    restore(here, tmp_path / "b.tar")
    assert [name for name, _ in objects(here)] == ["a", "b", "c"]


def test_a_backup_leaves_out_what_a_new_machine_makes_itself(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    for name in ("outages", "backups", "replaced-1"):
        (here / name).mkdir()
        (here / name / "x").write_text("x")
    for name in ("lock", "store.db.before-2", "audit.jsonl", ".kubeconfig.partial"):
        (here / name).write_text("x")
    (here / "tokens.json").symlink_to("/etc/passwd")
    backup(here, tmp_path / "b.tar")
    assert [part.name for part in read_manifest(tmp_path / "b.tar").parts] == [
        "store.db", "encryption.key", "pki/boards-ca.key", "pki/fleet.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_data_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FailedPrecondition, match="name the --data-dir of a controller that has run"):
        backup(tmp_path / name, tmp_path / "b.tar")
    assert os.listdir(tmp_path) == ["empty"]


@pytest.mark.processes
def test_a_refusal_is_one_sentence_and_an_exit_status(tmp_path: Path) -> None:
    words = ["controller", "backup", "--data-dir", str(tmp_path / "nowhere"), "--to", str(tmp_path / "b.tar")]
    done = subprocess.run([sys.executable, "-m", "rkfleet.cli.main", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == FailedPrecondition.exit_status
    assert done.stderr == f"error: data directory {tmp_path / 'nowhere'} is not there; name the --data-dir of a controller that has run\n"


@pytest.mark.processes
def test_no_controller_starts_on_half_a_restore(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    (here / "restoring").write_text(json.dumps({"backup": "/b.tar", "aside": "replaced-1", "replaced": 3, "tokens": True}))
    words = [sys.executable, "-m", "controller", "--data-dir", str(here), "--api-port", "0", "--grpc-port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == FailedPrecondition.exit_status
    assert "a restore of /b.tar into" in done.stderr
    assert row(here / "store.db", "SELECT revision FROM counter") == (3,)


def test_a_damaged_store_makes_no_backup(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    with closing(sqlite3.connect(here / "store.db")) as connection, connection:
        connection.execute("UPDATE objects SET uid = 'other' WHERE name = 'b'")
    with pytest.raises(FailedPrecondition, match=r"object models.rkfleet.dev/default/b has metadata.uid 'uid-b', its row says 'other'"):
        backup(here, tmp_path / "b.tar")
    assert os.listdir(tmp_path) == ["here"]


def test_a_backup_under_load_is_of_one_moment(tmp_path: Path) -> None:
    """It holds exactly the writes up to its revision, and the writers go on meanwhile."""
    here = installation(tmp_path / "here")
    states: dict[int, tuple[str, int]] = {}

    async def write(store: SqlStore, name: str, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            item = await store.patch(model_ref(name), {"spec": {"number": number, "pad": "x" * 2_000}}, now=NOW)
            states[int(item.resource_version)] = (name, number)

    async def use(store: SqlStore) -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for name in "abc":
                tasks.create_task(write(store, name, stop))
            for turn in range(3):
                written = len(states)
                while len(states) < written + 10:
                    await asyncio.wait_for(store.get(model_ref("a")), 10)
                    await CLOCK.sleep(0)
                await asyncio.to_thread(backup, here, tmp_path / f"{turn}.tar")
            stop.set()

    using(here, use)
    for turn in range(3):
        there = tmp_path / f"there-{turn}"
        done = restore(there, tmp_path / f"{turn}.tar")
        assert done.manifest.store is not None
        expected: dict[str, int] = {}
        for revision, (name, number) in sorted(states.items()):
            if revision <= done.manifest.store.revision:
                expected[name] = number
        assert {name: obj["spec"]["number"] for name, obj in objects(there)} == expected


def test_watches_pages_and_writes_from_before_a_restore_begin_anew(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar")
    known: dict[str, Any] = {}

    async def change(store: SqlStore) -> None:
        known["item"] = await store.patch(model_ref("a"), {"spec": {"family": "changed"}}, now=NOW)
        await store.delete(model_ref("b"), now=NOW)
        await store.create(model_ref("d"), model("d"))
        known["page"] = await store.list(MODELS, limit=1)

    using(here, change)
    done = restore(here, tmp_path / "b.tar")
    assert done.replaced == 6
    assert done.revision == 6 + JUMP_REVISIONS

    async def go_on(store: SqlStore) -> None:
        for revision in ("0", "3", "6", str(JUMP_REVISIONS)):
            with pytest.raises(Expired):
                await store.watch(MODELS, resource_version=revision)
        with pytest.raises(Expired):
            await store.list(MODELS, limit=1, continue_token=known["page"].continue_token)
        with pytest.raises(Conflict):
            await store.patch(model_ref("a"), {"spec": {"family": "late"}}, resource_version=known["item"].resource_version, now=NOW)
        page = await store.list(MODELS)
        assert [item.ref.name for item in page.items] == ["a", "b", "c"]
        assert page.resource_version == str(done.revision)
        watch = await store.watch(MODELS, resource_version=page.resource_version)
        async with aclosing(watch):
            made = await store.create(model_ref("d"), model("d"))
            assert int(made.resource_version) == int(page.resource_version) + 1
            assert [change.item.ref.name for change in await take(watch, 1) if change.item] == ["d"]

    using(here, go_on)


def test_what_a_restore_replaces_is_put_aside(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar")
    using(here, lambda store: store.delete(model_ref("a"), now=NOW))  # type: ignore[arg-type, return-value]
    done = restore(here, tmp_path / "b.tar")
    assert done.aside is not None
    assert row(done.aside / "store.db", "SELECT revision FROM counter") == (4,)
    assert stat.S_IMODE(done.aside.stat().st_mode) == 0o700
    again = restore(here, tmp_path / "b.tar")
    assert again.aside is not None
    assert again.revision == 4 + 2 * JUMP_REVISIONS
    assert len([path for path in here.rglob("store.db*") if "replaced-" in str(path)]) == 2


def test_a_damaged_store_is_replaced(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar")
    (here / "store.db").write_bytes(b"\xff" * 8192)
    done = restore(here, tmp_path / "b.tar")
    assert (done.replaced, done.revision) == (None, 3 + JUMP_REVISIONS)
    assert [name for name, _ in objects(here)] == ["a", "b", "c"]


def test_a_running_controller_is_not_restored(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar")
    words = ["--data-dir", str(here), "--from", str(tmp_path / "b.tar")]
    with lock_data_dir(here), pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()}; stop it"):
        commands.run("restore", words, clock=CLOCK, version="1.2.3")


def test_tokens_that_were_used_or_revoked_stay_so(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    tokens = tokens_of(here)
    old, (join, _) = tokens.issue_api_token("admin", "admin"), tokens.create_join_token("board")
    backup(here, tmp_path / "b.tar")
    tokens.redeem(join, "board-1", "k1")
    tokens.settle("board-1", "k1")
    new = tokens.issue_api_token("admin", "admin")
    done = restore(here, tmp_path / "b.tar")
    assert set(done.kept) == {"tokens.json", "tokens.json.log"}
    kept = tokens_of(here)
    assert kept.identify(old) is None
    assert kept.identify(new) is not None
    with pytest.raises(PermissionDenied, match="was used by board-1"):
        kept.redeem(join, "board-2", "k2")


def test_on_a_new_machine_join_tokens_of_a_backup_admit_nobody(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    tokens = tokens_of(here)
    (first, _), admin = tokens.create_join_token("board"), tokens.issue_api_token("admin", "admin")
    second, _ = tokens.create_join_token("board")
    with (here / "tokens.json.log").open("ab") as log:
        log.write(b'{"api":{"na')  # What a crash leaves of a change that was never acknowledged.
    backup(here, tmp_path / "b.tar")
    restore(tmp_path / "there", tmp_path / "b.tar")
    rebuilt = tokens_of(tmp_path / "there")
    assert rebuilt.identify(admin) is not None
    for join in (first, second):
        with pytest.raises(Unauthenticated, match="unknown to this controller"):
            rebuilt.redeem(join, "board-1", "k1")


def test_boards_that_came_or_went_since_the_backup_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = installation(tmp_path / "here")

    async def join_two(store: SqlStore) -> None:
        await store.create(board_ref("stolen"), board("stolen"))
        await store.create(board_ref("stays"), board("stays"))

    async def change(store: SqlStore) -> None:
        await store.delete(board_ref("stolen"), now=NOW)
        await store.create(board_ref("new"), board("new"))

    using(here, join_two)
    backup(here, tmp_path / "b.tar")
    using(here, change)
    commands.run("restore", ["--data-dir", str(here), "--from", str(tmp_path / "b.tar")], clock=CLOCK, version="1.2.3")
    said = capsys.readouterr().out
    assert "boards that were deleted since the backup are admitted again: stolen; delete them again" in said
    assert "boards that joined since the backup have to join again: new\n" in said
    assert "the store that was replaced was 2 changes ahead; they are undone" in said


def test_the_key_of_the_restored_store_comes_with_it(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    backup(here, tmp_path / "b.tar")
    (here / "encryption.key").write_text("a newer key")
    (here / "pki" / "boards-ca.key").write_text("a newer authority")
    done = restore(here, tmp_path / "b.tar")
    assert done.aside is not None
    assert (here / "encryption.key").read_text() == "key of secrets"
    assert (done.aside / "encryption.key").read_text() == "a newer key"
    assert (here / "pki" / "boards-ca.key").read_text() == "a newer authority"
    assert (done.written, done.kept) == (("encryption.key",), ("pki/boards-ca.key",))


def refused(directory: Path, source: Path, why: str, error: type[FleetError] = FailedPrecondition) -> None:
    before = sorted(path.relative_to(directory) for path in directory.rglob("*")) if directory.exists() else []
    with pytest.raises(error, match=why):
        restore(directory, source)
    assert sorted(path.relative_to(directory) for path in directory.rglob("*") if path.name != "lock") == [
        path for path in before if path.name != "lock"
    ]


def test_a_backup_of_another_fleet_is_refused(tmp_path: Path) -> None:
    backup(installation(tmp_path / "other", "f-2"), tmp_path / "b.tar")
    refused(installation(tmp_path / "here"), tmp_path / "b.tar", r"b\.tar is of fleet f-2, .* of fleet f-1")


def made_by_hand(target: Path, **changes: Any) -> None:
    values = {"format": FORMAT, "rkfleet": "9.9", "fleet_id": "f-1", "time": "2026-01-01T00:00:00Z", "store": None, "parts": ()}
    contents = {part.name: b"x" for part in changes.get("parts", ())}
    write_archive(target, Manifest(**{**values, **changes}), contents)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a//b", "", "."])
def test_a_backup_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    made_by_hand(tmp_path / "b.tar", parts=(part_of(name, b"x"),))
    refused(tmp_path / "here", tmp_path / "b.tar", "not below a data directory")


def test_a_backup_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    made_by_hand(tmp_path / "b.tar", format=FORMAT + 1)
    refused(tmp_path / "here", tmp_path / "b.tar", "backup of format 2, rkfleet 9.9 made it; this rkfleet knows format 1")


def test_a_backup_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    here = installation(tmp_path / "here")
    with closing(sqlite3.connect(here / "store.db")) as connection, connection:
        connection.execute("UPDATE counter SET schema_version = 99")
    backup(here, tmp_path / "b.tar")
    refused(tmp_path / "there", tmp_path / "b.tar", "has schema version 99, this rkfleet knows 2: rkfleet 1.2.3 made it; install that")


def test_a_backup_of_the_last_release_s_store_is_restored_and_migrated(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "pki").mkdir(parents=True)
    (here / "pki" / "fleet.json").write_text('{"fleetId": "f-1"}')
    old_sqlite(here / "store.db")
    backup(here, tmp_path / "b.tar")
    restore(tmp_path / "there", tmp_path / "b.tar")
    assert [name for name, _ in objects(tmp_path / "there")] == ["a"]
    assert row(tmp_path / "there" / "store.db", "SELECT schema_version, revision FROM counter") == (2, 7 + JUMP_REVISIONS)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "no backup of a controller"), (b"x" * 4096, "no backup of a controller"), (None, "cannot be read: No such file")],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "b.tar").write_bytes(content)
    refused(tmp_path / "here", tmp_path / "b.tar", why, FailedPrecondition if content is not None else Unavailable)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `here` and its backup `b.tar`."""
    directory = tmp_path_factory.mktemp("whole")
    backup(installation(directory / "here"), directory / "b.tar")
    return directory


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bits=st.integers(0, 255))
def test_a_damaged_backup_is_refused_or_was_damaged_where_nothing_is(
    place: int, bits: int, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some bits of one byte are flipped; without any, the file is cut there."""
    content = (whole / "b.tar").read_bytes()
    damaged = bytearray(content)
    if bits:
        damaged[place % len(content)] ^= bits
    else:
        del damaged[place % len(content) :]
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "b.tar").write_bytes(damaged)
    try:
        restore(directory / "there", directory / "b.tar")
    except FailedPrecondition:
        assert os.listdir(directory / "there") == ["lock"]
    else:
        assert objects(directory / "there") == objects(whole / "here")
        assert (directory / "there" / "encryption.key").read_text() == "key of secrets"
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for others")
def test_what_root_restores_belongs_to_the_user_of_the_controller(tmp_path: Path) -> None:
    backup(installation(tmp_path / "here"), tmp_path / "b.tar")
    there = tmp_path / "there"
    there.mkdir()
    os.chown(there, 12345, 12345)
    restore(there, tmp_path / "b.tar")
    assert {path.lstat().st_uid for path in there.rglob("*")} == {12345}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size, as on a disk that is full there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 5_000, 20_000])
def test_a_full_disk_leaves_no_backup_and_restores_nothing(tmp_path: Path, size: int) -> None:
    here = installation(tmp_path / "here")
    with files_of_at_most(size), pytest.raises(Unavailable):
        backup(here, tmp_path / "b.tar")
    assert os.listdir(tmp_path) == ["here"]
    backup(here, tmp_path / "b.tar")
    using(here, lambda store: store.delete(model_ref("a"), now=NOW))  # type: ignore[arg-type, return-value]
    with files_of_at_most(size), pytest.raises(FleetError):
        restore(here, tmp_path / "b.tar")
    refuse_half_restored(here)
    assert [name for name, _ in objects(here)] == ["b", "c"]
    restore(here, tmp_path / "b.tar")
    assert [name for name, _ in objects(here)] == ["a", "b", "c"]


@pytest.mark.processes
def test_a_restore_that_is_killed_anywhere_is_done_again(tmp_path: Path) -> None:
    """After each kill the directory is as it was, or no controller starts until the same restore has been done."""
    here = installation(tmp_path / "here")
    tokens_of(here).issue_api_token("admin", "admin")
    backup(here, tmp_path / "b.tar")
    restored = objects(here)
    using(here, lambda store: store.delete(model_ref("a"), now=NOW))  # type: ignore[arg-type, return-value]
    (here / "encryption.key").write_text("a newer key")
    (here / "tokens.json").unlink()
    changed = [("b", restored[1][1]), ("c", restored[2][1])]
    kills = tmp_path / "kills"
    kills.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.support.restore_child", "restore", here, kills, tmp_path / "b.tar"], check=True, timeout=100
    )
    seen = []
    commands_typed: set[str] = set()
    for number in range(len(os.listdir(kills))):
        directory = kills / str(number)
        try:
            refuse_half_restored(directory)
        except FailedPrecondition as error:
            seen.append("half")
            words = error.message.rpartition(": ")[2]
            commands_typed.add(words.replace(str(directory), "HERE"))
        else:
            seen.append("done" if row(directory / "store.db", "SELECT revision FROM counter") > (JUMP_REVISIONS,) else "untouched")
            if seen[-1] == "untouched":
                assert (directory / "encryption.key").read_text() == "a newer key"
                assert objects(directory) == changed
        done = restore(directory, tmp_path / "b.tar")
        refuse_half_restored(directory)
        assert done.revision is not None
        assert done.revision >= 4 + JUMP_REVISIONS
        assert objects(directory) == restored
        assert (directory / "encryption.key").read_text() == "key of secrets"
        assert any(examined(path).objects == 2 for path in directory.glob("replaced-*/store.db*")), number
        assert not (directory / ".restoring").exists()
    assert seen == sorted(seen, key=["untouched", "half", "done"].index)
    assert set(seen) == {"untouched", "half", "done"}
    assert commands_typed == {f"rkfleet controller restore --data-dir HERE --from {tmp_path / 'b.tar'}"}


def test_the_jump_of_a_postgres_database_reaches_running_controllers(capsys: pytest.CaptureFixture[str]) -> None:
    url = postgres_url()

    async def scenario() -> None:
        async with SqlStore.open(url, KINDS) as one, SqlStore.open(url, KINDS) as other, asyncio.timeout(30):
            made = await one.create(model_ref("a"), model("a"))
            watch = await other.watch(MODELS, resource_version=made.resource_version)
            async with aclosing(watch):
                await asyncio.to_thread(commands.run, "restore", ["--jump", "--database-url", url], clock=CLOCK, version="1.2.3")
                with pytest.raises(Expired):
                    await take(watch, 1)
            page = await other.list(MODELS)
            assert page.resource_version == str(1 + JUMP_REVISIONS)
            assert [item.resource_version for item in page.items] == [made.resource_version]
            after: Item = await one.create(model_ref("b"), model("b"))
            assert after.resource_version == str(2 + JUMP_REVISIONS)

    asyncio.run(scenario())
    assert f"the counter is {1 + JUMP_REVISIONS}" in capsys.readouterr().out


def test_with_postgres_a_backup_holds_the_files_and_names_pg_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = installation(tmp_path / "here")
    (here / "store.db").unlink()
    words = ["--data-dir", str(here), "--to", str(tmp_path / "b.tar"), "--files-only"]
    commands.run("backup", words, clock=CLOCK, version="1.2.3")
    assert "pg_dump" in capsys.readouterr().out
    done = restore(tmp_path / "there", tmp_path / "b.tar")
    assert done.revision is None
    assert (tmp_path / "there" / "pki" / "boards-ca.key").read_text() == "key of f-1"
    assert not (tmp_path / "there" / "store.db").exists()


@pytest.mark.parametrize("words", [[], ["--jump"], ["--from", "x"], ["--jump", "--from", "x", "--data-dir", "y"]])
def test_half_a_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        commands.parse_restore(words)
    assert "give --data-dir and --from, or --jump and --database-url" in capsys.readouterr().err
