"""`rkfleet controller backup` and `rkfleet controller restore`: command lines, and what they say.

In: words. Out: a backup, a restored data directory, or the jump of a PostgreSQL database's counter, and one paragraph for the operator.
`controller/__main__.py` calls `run`; the command line of rkfleet becomes that program and knows nothing of this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from controller.backups.manifest import Manifest
from controller.backups.restoring import Restored, restore_backup
from controller.backups.taking import Taken, take_backup
from controller.config import DATABASE_URL_VARIABLE
from controller.store.sql.postgres import PostgresDatabase
from rkfleet.clock import Clock
from rkfleet.process import lock_data_dir

__all__ = ["WORDS", "parse_backup", "parse_restore", "run"]

WORDS: Final = ("backup", "restore")
NAMES_SHOWN_MAX: Final = 20  # A screen; the replaced store has them all.


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What `backup` is told; each field is a flag, described there."""

    data_dir: Path
    to: Path
    store_only: bool
    files_only: bool


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """What `restore` is told; each field is a flag, described there."""

    data_dir: Path | None
    source: Path | None
    jump: bool
    database_url: str


def run(word: str, arguments: Sequence[str], *, clock: Clock, version: str) -> None:
    """Do what one of WORDS asks for and print what it came to.

    Raises:
        FleetError: It was not done, and why.
    """
    print(_backup(arguments, clock, version) if word == "backup" else _restore(arguments, clock))  # noqa: T201 (the command's answer)


def parse_backup(arguments: Sequence[str]) -> Backup:
    """Read the command line of `backup`; a mistake ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="rkfleet controller backup",
        description="Write one file from which this controller can be rebuilt, also while it runs. It contains keys and tokens.",
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="of the controller")
    parser.add_argument("--to", type=Path, required=True, help="file to make; must not be there yet")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--store-only", action="store_true", help="leave out certificates, keys and tokens; only objects are backed up")
    part.add_argument("--files-only", action="store_true", help="leave out the store, because it is in PostgreSQL: back it up with pg_dump")
    given = parser.parse_args(arguments)
    return Backup(data_dir=given.data_dir, to=given.to, store_only=given.store_only, files_only=given.files_only)


def parse_restore(arguments: Sequence[str]) -> Restore:
    """Read the command line of `restore`; a mistake ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="rkfleet controller restore",
        description="Bring a stopped controller back to a backup. What is there is put aside, never deleted; every watch lists again.",
    )
    parser.add_argument("--data-dir", type=Path, help="of the controller, which must not run; may be empty or missing")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a file that `rkfleet controller backup` made")
    parser.add_argument(
        "--jump",
        action="store_true",
        help="after pg_restore: move the counter of the database in --database-url ahead, so that nothing is counted twice",
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get(DATABASE_URL_VARIABLE, ""),
        help=f"PostgreSQL database, with --jump; better given in ${DATABASE_URL_VARIABLE}, which keeps its password to itself",
    )
    given = parser.parse_args(arguments)
    if given.jump == bool(given.source) or (given.jump and not given.database_url) or (given.source and not given.data_dir):
        parser.error("give --data-dir and --from, or --jump and --database-url")
    return Restore(data_dir=given.data_dir, source=given.source, jump=given.jump, database_url=given.database_url)


def _backup(arguments: Sequence[str], clock: Clock, version: str) -> str:
    told = parse_backup(arguments)
    taken = take_backup(
        told.data_dir, told.to, clock=clock, version=version, with_store=not told.files_only, with_files=not told.store_only
    )
    return _told_backup(told, taken)


def _told_backup(told: Backup, taken: Taken) -> str:
    lines = [f"wrote {told.to}: {_held(taken.manifest)}, {taken.bytes} bytes, {taken.seconds:.1f} s"]
    if not told.store_only:
        lines.append("it contains private keys and tokens: keep it as you keep passwords")
    if told.files_only:
        lines.append("it does not contain the store; for the one in PostgreSQL run pg_dump --format=custom --exclude-schema=rkfleet_trust")
    return "\n".join(lines)


def _held(manifest: Manifest) -> str:
    store = manifest.store
    held = f"revision {store.revision}, {store.objects} objects" if store is not None else "no store"
    return f"fleet {manifest.fleet_id or '(none)'}, {held}, {len(manifest.parts)} files"


def _restore(arguments: Sequence[str], clock: Clock) -> str:
    told = parse_restore(arguments)
    if told.jump:
        with contextlib.closing(PostgresDatabase.open(told.database_url)) as database:
            revision = database.jump()
        return f"the counter is {revision}; every watch lists again. Controllers may run: they notice"
    assert told.data_dir is not None, "the parser asks for it"
    assert told.source is not None, "as above"
    with lock_data_dir(told.data_dir):
        return _told_restore(told.data_dir, told.source, restore_backup(told.data_dir, told.source, now=clock.now()))


def _told_restore(directory: Path, source: Path, done: Restored) -> str:
    lines = [f"restored {source} of {done.manifest.time} into {directory}: {_held(done.manifest)}"]
    if done.revision is not None:
        lines.append(f"the counter is {done.revision}, so every watch and every page of a list from before begins anew")
        if done.replaced is not None and (lost := done.replaced - (done.manifest.store.revision if done.manifest.store else 0)) > 0:
            lines.append(f"the store that was replaced was {lost} changes ahead; they are undone")
    if done.aside is not None:
        lines.append(f"what was there is in {done.aside}; remove it when you are sure")
    if done.written:
        lines.append(f"written: {', '.join(done.written)}")
    if done.kept:
        lines.append(f"kept, because they may be newer than the backup's: {', '.join(done.kept)}")
    if any(name.startswith("tokens") for name in done.written):
        lines.append("tokens are the backup's, without join tokens: make new ones, and revoke again what was revoked since")
    if done.returned:
        lines.append(f"boards that were deleted since the backup are admitted again: {_listed(done.returned)}; delete them again")
    if done.unknown:
        lines.append(f"boards that joined since the backup have to join again: {_listed(done.unknown)}")
    lines.append("now start the controller")
    return "\n".join(lines)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return ", ".join(names[:NAMES_SHOWN_MAX]) + more
