"""Taking a backup, also while the controller runs.

In: a data directory. Out: one file that was proven whole before it got its name. The copy of the store is of one moment and keeps no writer
waiting (`controller.store.sql.copying`); the files beside it are read when none of them changes. Called by the command line, and by the
schedule in a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from controller.backups.archive import Content, part_of, write_archive
from controller.backups.files import read_files
from controller.backups.manifest import FORMAT, STORE, Manifest, Store
from controller.store.sql import copying
from rkfleet.clock import Clock, format_time
from rkfleet.errors import FailedPrecondition

__all__ = ["Taken", "fleet_of", "take_backup"]

FLEET_FILE = "pki/fleet.json"


class Taken(msgspec.Struct, frozen=True):
    """A backup that was made.

    Attributes:
        manifest: What it holds.
        bytes: Size of its file.
        seconds: How long it took.
    """

    manifest: Manifest
    bytes: int
    seconds: float


def take_backup(directory: Path, target: Path, *, clock: Clock, version: str, with_store: bool = True, with_files: bool = True) -> Taken:
    """Write a backup of a controller's data directory.

    Args:
        directory: Of the controller, which may be running.
        target: File to make; must not be there yet.
        clock: Time.
        version: Release of this program.
        with_store: False where the store is in PostgreSQL.
        with_files: False for a backup without keys and tokens.

    Raises:
        FailedPrecondition: There is nothing to back up, it is damaged, or `target` is there.
        Unavailable: The disk is full or refuses.
    """
    started, time = clock.monotonic(), format_time(clock.now())
    if target.exists():
        raise FailedPrecondition(f"{target} is there already; name another file, or move it")
    if not directory.is_dir():
        raise FailedPrecondition(f"data directory {directory} is not there; name the --data-dir of a controller that has run")
    files = read_files(directory)
    if with_files and FLEET_FILE not in files:
        raise FailedPrecondition(f"{directory} has no {FLEET_FILE}; name the --data-dir of a controller that has run")
    contents: dict[str, Content] = {}
    with contextlib.ExitStack() as stack:
        store: Store | None = None
        if with_store:
            figures, contents[STORE] = stack.enter_context(_copied(directory / STORE, target))
            store = Store(figures.schema_version, figures.revision, figures.objects)
        contents.update(files if with_files else {})
        manifest = Manifest(
            format=FORMAT,
            rkfleet=version,
            fleet_id=fleet_of(files),
            time=time,
            store=store,
            parts=tuple(part_of(name, content) for name, content in contents.items()),
        )
        size = write_archive(target, manifest, contents)
    return Taken(manifest, size, clock.monotonic() - started)


def fleet_of(files: Mapping[str, bytes]) -> str:
    """Return the fleet that the files of a data directory are of; empty if they do not say.

    Raises:
        FailedPrecondition: They say it in a form that cannot be read.
    """
    try:
        return msgspec.json.decode(files[FLEET_FILE], type=_Fleet).fleet_id if FLEET_FILE in files else ""
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{FLEET_FILE} cannot be read ({error}); restore it from a backup") from error


class _Fleet(msgspec.Struct, rename="camel"):
    fleet_id: str


@contextlib.contextmanager
def _copied(store: Path, target: Path) -> Iterator[tuple[copying.Figures, IO[bytes]]]:
    """Make a copy of the store and prove it. It lies beside the target, and has no name any more when it is given to the caller."""
    copy = target.with_name(f".{target.name}.{STORE}")
    with contextlib.ExitStack() as stack:
        try:
            copying.copy_store(store, copy)
            figures = copying.examined(copy)
            with copying.refused(copy, "read"):
                file = stack.enter_context(copy.open("rb"))
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(OSError):  # What is wrong there was told already.
                    copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        yield figures, file
