"""Restoring a backup into a data directory that no controller holds.

In: a backup, proven by its hashes. Out: a directory with which a controller starts, and whose clients, watchers and boards recover by
themselves. Nothing is deleted: what was there is put aside into `replaced-<time>`.

- The store is the backup's, its counter moved far ahead (`controller.store.sql.jump`).
- Files that are there stay, because they are newer: certificates may have been renewed, join tokens used, API tokens revoked. Files that
  are missing come from the backup, without its join tokens: which of them were used since, nobody knows.
- The key that the store's secrets are encrypted with is part of the store, so the backup's is used.

It can be killed at any moment. Until the store is exchanged the directory is as it was; while it is exchanged the file `restoring` is
there, with which no controller starts, and the same restore is done again. Boards that hold a newer assignment than the store get one above
it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from controller.backups.archive import read_archive, read_manifest
from controller.backups.files import FILE_BYTES_MAX, REPLACED, read_files
from controller.backups.manifest import STORE, Manifest, Part
from controller.backups.taking import fleet_of
from controller.store.sql import copying, tables
from controller.store.sql.jump import jump
from controller.trust.files import write_private
from controller.trust.tokens import TOKEN_FILES, without_join_tokens
from rkfleet.disk import flush_directory, move_durably
from rkfleet.errors import FailedPrecondition, Unavailable
from rkfleet.kinds import Board

__all__ = ["Restored", "refuse_half_restored", "restore_backup"]

MARK: Final = "restoring"
STORE_KEYS: Final = ("encryption.key",)  # Without the right one the store's secrets cannot be read.
_STAGE: Final = ".restoring"
_STORE_FILES: Final = (f"{STORE}-wal", f"{STORE}-shm", STORE)


class Restored(msgspec.Struct, frozen=True):
    """What a restore came to.

    Attributes:
        manifest: Of the backup.
        revision: The counter, after its jump; None without a store.
        replaced: Newest revision of the store that was replaced; None where there was none or it could not be read.
        aside: Where the replaced files are; None if there were none.
        written: Files that came from the backup.
        kept: Files that differ from the backup's and were kept.
        returned: Boards that were deleted since the backup, as far as the replaced store tells, and are admitted again.
        unknown: Boards that joined since and are not known any more.
    """

    manifest: Manifest
    revision: int | None
    replaced: int | None
    aside: Path | None
    written: tuple[str, ...]
    kept: tuple[str, ...]
    returned: tuple[str, ...]
    unknown: tuple[str, ...]


class _Mark(msgspec.Struct):
    """What a restore that is under way tells the next one."""

    backup: str
    aside: str
    replaced: int | None
    tokens: bool


def refuse_half_restored(directory: Path) -> None:
    """Check that no restore was interrupted while it exchanged files.

    Raises:
        FailedPrecondition: One was.
    """
    if (mark := _read_mark(directory)) is not None:
        raise FailedPrecondition(
            f"a restore of {mark.backup} into {directory} was interrupted; run it again: rkfleet controller restore --data-dir {directory}"
            f" --from {mark.backup}"
        )


def restore_backup(directory: Path, backup: Path, *, now: datetime) -> Restored:
    """Make the data directory that of the backup; the caller holds its lock.

    Raises:
        FailedPrecondition: The backup is damaged, of another fleet, or of a newer release.
        Unavailable: The disk is full or refuses.
    """
    manifest = read_manifest(backup)
    files = read_files(directory)
    fleet = fleet_of(files)
    if fleet and manifest.fleet_id and fleet != manifest.fleet_id:
        raise FailedPrecondition(
            f"{backup} is of fleet {manifest.fleet_id}, {directory} of fleet {fleet}: boards would not know their controller;"
            " restore into an empty --data-dir"
        )
    if manifest.store is not None and manifest.store.schema_version > tables.SCHEMA_VERSION:
        raise FailedPrecondition(
            f"{backup} has schema version {manifest.store.schema_version}, this rkfleet knows {tables.SCHEMA_VERSION}: rkfleet"
            f" {manifest.rkfleet} made it; install that release or a newer one"
        )
    with _translated(directory), _stage(directory) as stage:
        wanted = _unpack(backup, stage)
        exchange = _Exchange(directory, backup, now, tokens=any(name in files for name in TOKEN_FILES))
        returned, unknown = _boards(directory / STORE, stage / STORE) if manifest.store is not None else ((), ())
        revision = exchange.jumped(stage / STORE) if manifest.store is not None else None
        written, kept = _chosen(files, wanted, keep_tokens=exchange.tokens)
        exchange.begin()
        exchange.put_aside((*(_STORE_FILES if manifest.store is not None else ()), *(name for name in written if name in files)))
        for name in written:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, wanted[name])
        if manifest.store is not None:
            move_durably(stage / STORE, directory / STORE)
        _give_to_owner(directory)
        exchange.end()
    aside = exchange.aside if exchange.aside.exists() else None
    return Restored(manifest, revision, exchange.replaced, aside, written, kept, returned, unknown)


class _Exchange:
    """The moment in which files are neither the old nor the new ones, and what is remembered of it."""

    def __init__(self, directory: Path, backup: Path, now: datetime, *, tokens: bool) -> None:
        earlier = _read_mark(directory)
        found = copying.revision_of(directory / STORE)
        known = [one for one in (found, earlier.replaced if earlier else None) if one is not None]
        self.replaced: Final = max(known, default=None)
        self.aside: Final = directory / (earlier.aside if earlier else f"{REPLACED}{now:%Y%m%dT%H%M%SZ}")
        self.tokens: Final = earlier.tokens if earlier else tokens  # Whether some were there; an interrupted restore may have written some.
        self._directory: Final = directory
        self._backup: Final = backup

    def jumped(self, store: Path) -> int:
        """Prove the store that comes, move its counter ahead, and return it."""
        copying.examined(store)
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(store)), poolclass=sa.NullPool)
        try:
            with engine.begin() as connection:
                revision = jump(connection, self.replaced or 0)
        except SQLAlchemyError as error:
            raise Unavailable(f"{store} cannot be written: {error}") from error
        finally:
            engine.dispose()
        descriptor = os.open(store, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return revision

    def begin(self) -> None:
        """From here on no controller starts until `end`."""
        mark = _Mark(str(self._backup.absolute()), self.aside.name, self.replaced, self.tokens)
        write_private(self._directory / MARK, msgspec.json.encode(mark))

    def put_aside(self, names: tuple[str, ...]) -> None:
        """Move files out of the way, those first whose absence does no harm alone; none that is there already is replaced."""
        for name in names:
            if (path := self._directory / name).exists():
                target = self.aside / name
                number = 1
                while target.exists():
                    number += 1
                    target = self.aside / f"{name}.{number}"
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                move_durably(path, target)
        flush_directory(self._directory)

    def end(self) -> None:
        """Let controllers start."""
        (self._directory / MARK).unlink(missing_ok=True)
        flush_directory(self._directory)


def _chosen(present: Mapping[str, bytes], wanted: Mapping[str, bytes], *, keep_tokens: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which files to write, and which differ and are kept."""
    written: list[str] = []
    kept: list[str] = []
    for name, content in wanted.items():
        if name in present and present[name] == content:
            continue
        keep = keep_tokens if name in TOKEN_FILES else name in present and name not in STORE_KEYS
        (kept if keep else written).append(name)
    return tuple(written), tuple(kept)


def _boards(replaced: Path, restored: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the boards that only the restored store has, and those that only the replaced one has."""
    resource = Board.resource.name
    before, after = copying.names_in(replaced, resource), copying.names_in(restored, resource)
    if before is None or after is None:
        return (), ()
    return tuple(sorted(after - before)), tuple(sorted(before - after))


def _unpack(backup: Path, stage: Path) -> dict[str, bytes]:
    """Write the store into the stage and return the other files, without join tokens."""
    files: dict[str, bytes] = {}

    def take(part: Part, pieces: Iterator[bytes]) -> None:
        if part.name != STORE:
            if part.bytes > FILE_BYTES_MAX:
                raise FailedPrecondition(f"{backup} has {part.name} with {part.bytes} bytes, at most {FILE_BYTES_MAX} are possible")
            files[part.name] = b"".join(pieces)
            return
        with _translated(stage), (stage / STORE).open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for piece in pieces:
                file.write(piece)

    read_archive(backup, take)
    return {name: without_join_tokens(content) if name in TOKEN_FILES else content for name, content in files.items()}


def _give_to_owner(directory: Path) -> None:
    """Give what root made in the directory of a service's user to that user, who could not read it otherwise."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in directory.rglob("*"):
        if path.lstat().st_uid == 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


@contextlib.contextmanager
def _stage(directory: Path) -> Iterator[Path]:
    stage = directory / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror or error}: {error.filename or ''}") from error


def _read_mark(directory: Path) -> _Mark | None:
    try:
        return msgspec.json.decode((directory / MARK).read_bytes(), type=_Mark)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(
            f"{directory / MARK} of an interrupted restore cannot be read ({error}); remove it and restore again"
        ) from error
