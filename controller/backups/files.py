"""What a controller keeps beside its store, and what of it belongs to a backup: everything small that a new machine could not make itself.

In: a data directory, perhaps of a running controller. Out: the contents of its files as of one moment. The store is copied elsewhere; left
out are locks, backups, what a restore put aside, samples of outages and audit logs, which are records and not needed to go on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from controller.backups.manifest import STORE
from rkfleet.errors import FailedPrecondition, Unavailable

__all__ = ["BACKUPS", "FILE_BYTES_MAX", "REPLACED", "read_files"]

BACKUPS: Final = "backups"
REPLACED: Final = "replaced-"
FILE_BYTES_MAX: Final = 16 << 20  # Ten thousand join tokens take 3 MB.
FILES_MAX: Final = 1_000  # A data directory has about twenty.
TRIES: Final = 10  # Files change for an instant when somebody joins; a backup that meets ten of them in a row says so.

_LEFT_OUT: Final = ("lock", "outages", "audit", BACKUPS, REPLACED, STORE, "restoring", ".")


def read_files(directory: Path) -> Mapping[str, bytes]:
    """Return the files of a data directory by their relative names; none of them changed while they were read.

    Raises:
        FailedPrecondition: There are too many or too large ones, so the directory is another's.
        Unavailable: The disk refuses, or files change faster than they can be read.
    """
    try:
        for _ in range(TRIES):
            before = _stamps(directory)
            contents = _read(directory, before)
            if contents is not None and _stamps(directory) == before:
                return contents
    except OSError as error:
        raise Unavailable(f"{directory} cannot be read: {error.strerror or error}: {error.filename or ''}") from error
    raise Unavailable(f"files of {directory} changed {TRIES} times while they were read; try again")


def _read(directory: Path, stamps: Mapping[str, tuple[int, ...]]) -> dict[str, bytes] | None:
    try:
        return {name: (directory / name).read_bytes() for name in stamps}
    except FileNotFoundError:
        return None


def _stamps(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return what changes when a file does, for each that belongs to a backup, in order."""
    found: dict[str, tuple[int, ...]] = {}
    for path in _walk(directory, top=True):
        status = path.lstat()
        name = path.relative_to(directory).as_posix()
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_size > FILE_BYTES_MAX:
            raise FailedPrecondition(f"{path} has {status.st_size} bytes, a file of a backup at most {FILE_BYTES_MAX}; move it elsewhere")
        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
        if len(found) > FILES_MAX:
            raise FailedPrecondition(f"{directory} has more than {FILES_MAX} files; is it the data directory of a controller?")
    return found


def _walk(directory: Path, *, top: bool = False) -> Iterator[Path]:
    for entry in sorted(os.scandir(directory), key=lambda one: one.name):
        if entry.name.startswith(_LEFT_OUT if top else "."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)
