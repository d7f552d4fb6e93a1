"""The model files of a board without a fleet: they stay where they lie, and are read whole once.

In: paths from the command line. Out: what the loop asks of artifacts (`agent.fetching.Whole`), answered for files that belong to somebody
else. Here a file is proven by its digest the first time, and afterwards by its size, inode and time of last change, which `models.json`
keeps: a start does not read gigabytes again.

Nobody but the owner of a file can bring it back. So a "fetch" looks at the file again: one that has changed is read, and `changed` tells
that something else is to be loaded; one that is gone is said, and looked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.assignment import AssignedFile
from rkfleet.disk import PIECE_BYTES, Disk, in_thread, write_durably
from rkfleet.errors import FailedPrecondition, FleetError, NotFound
from rkfleet.session import Grant

__all__ = ["RECORD_NAME", "LocalFile", "LocalFiles", "Progress"]

RECORD_NAME: Final = "models.json"
SPAN_BYTES: Final = 32 * PIECE_BYTES  # Hashed between two looks at whether anybody still waits.
RECORDS_MAX: Final = 64  # Files that were served once are remembered; the oldest make room.

Progress = Callable[[int, int], None]
"""Told bytes that were read and bytes of the file."""

_log = logging.getLogger(__name__)


class LocalFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when its digest was taken.

    Attributes:
        path: Absolute path.
        modified_ns: Time of its last change, nanoseconds since the epoch as the file system keeps it.
    """

    path: str
    inode: int
    size_bytes: int
    modified_ns: int
    digest: str


class LocalFiles:
    """Model files outside of the data directory; nothing here writes to them.

    Attributes:
        changed: Set when a file was found to have other content; whoever waits for it clears it.
    """

    def __init__(self, data_dir: Path, disk: Disk, say: Callable[[str], None]) -> None:
        """Read what earlier starts have proven; `say` is told once when a file is found changed or gone."""
        self._data_dir: Final = data_dir
        self._disk: Final = disk
        self._say: Final = say
        self._known: Final = _read_record(data_dir / RECORD_NAME)
        self._used: Final[set[str]] = set()
        self._said: Final[dict[str, str]] = {}
        self.changed: Final = asyncio.Event()

    async def prove(self, path: Path, progress: Progress = lambda _done, _total: None) -> LocalFile:
        """Return the file with its digest; it is read if it is not as it was when it was read last.

        Raises:
            NotFound: It is not there.
            FailedPrecondition: It cannot be read, or is being written.
        """
        self._used.add(str(path))
        found = self._current(path)
        if found is not None:
            return found
        file = await in_thread(_open, path)
        with file:
            before = _about(path, file)
            hasher, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
            done = 0
            while count := await in_thread(_hash_span, file, hasher, buffer):
                done += count
                progress(done, before.size_bytes)
            after = _about(path, file)
        if before != after or done != after.size_bytes:
            raise FailedPrecondition(f"model file {path} is being written; it is looked at again when that has ended")
        proven = msgspec.structs.replace(after, digest=f"sha256:{hasher.hexdigest()}")
        self._known.pop(proven.path, None)
        self._known[proven.path] = proven
        await in_thread(self._write_record)
        return proven

    def path(self, digest: str) -> Path:
        """Return where the file is.

        Raises:
            NotFound: No file has this digest now.
        """
        found = self._find(digest)
        if found is None:
            raise NotFound(f"no model file has digest {digest} now")
        return Path(found.path)

    def holds(self, digest: str, size_bytes: int) -> bool:
        """Return whether a file with this digest is there, unchanged since that was proven.

        Two files may have one digest; when one of them changes, both are looked at again, as nothing else would notice.
        """
        found = self._find(digest)
        if found is None or found.size_bytes != size_bytes or self._changed(digest):
            return False
        self._said.pop(found.path, None)
        return True

    async def verify(self, digest: str) -> Path:
        """Return the path of the file if it is unchanged.

        Raises:
            NotFound: It is gone or has changed.
        """
        return self.path(digest)

    async def request_grant(self, digests: tuple[str, ...]) -> Grant:
        """Return a grant that says nothing: the files are read from where they lie."""
        return Grant(request_id=0, sources=digests)

    async def fetch(self, files: Sequence[AssignedFile], grant: Grant, progress: Progress) -> None:  # noqa: ARG002 (there is nothing to grant)
        """Look at files again that are gone or have changed.

        Raises:
            NotFound: One is gone.
            FailedPrecondition: One has other content now, or cannot be read.
        """
        for file in files:
            for path in self._changed(file.digest) or [file.path]:
                try:
                    proven = await self.prove(Path(path), progress)
                except FleetError as error:
                    self._say_once(path, f"{error.message}; what is loaded goes on answering")
                    raise
                if proven.digest != file.digest:
                    self._say_once(path, f"model file {path} has changed; its new content is loaded")
                    self.changed.set()
                    raise FailedPrecondition(f"model file {path} has changed")

    def _say_once(self, path: str, sentence: str) -> None:
        if self._said.get(path) != sentence:
            self._said[path] = sentence
            _log.warning(sentence)
            self._say(sentence)

    def _find(self, digest: str) -> LocalFile | None:
        """Return a file that has this digest now."""
        return next((one for one in self._known.values() if one.digest == digest and self._current(Path(one.path))), None)

    def _changed(self, digest: str) -> list[str]:
        """Return the paths in use that had this digest, and where there is a file now that is not what it was."""
        used = (one for one in self._known.values() if one.digest == digest and one.path in self._used)
        return [one.path for one in used if _is_as_it_was(one) is False]

    def _current(self, path: Path) -> LocalFile | None:
        """Return what is known of the file if it is as it was."""
        known = self._known.get(str(path))
        return known if known is not None and _is_as_it_was(known) else None

    def _write_record(self) -> None:
        kept = list(self._known.values())[-RECORDS_MAX:]
        path = self._data_dir / RECORD_NAME
        try:
            write_durably(path, msgspec.json.encode(kept), path.with_suffix(".new"), self._disk)
        except OSError as error:  # The next start reads the file again, which is all that is lost.
            _log.warning("%s cannot be written: %s", path, error.strerror or error)


def _read_record(path: Path) -> dict[str, LocalFile]:
    try:
        return {one.path: one for one in msgspec.json.decode(path.read_bytes(), type=list[LocalFile])}
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("%s cannot be used, model files are read again: %s", path, error)
        return {}


def _is_as_it_was(known: LocalFile) -> bool | None:
    """Return whether the file is as it was when its digest was taken; None if it cannot be seen."""
    try:
        about = os.stat(known.path)
    except OSError:
        return None
    return (about.st_ino, about.st_size, about.st_mtime_ns) == (known.inode, known.size_bytes, known.modified_ns)


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path)
    except FileNotFoundError as error:
        raise NotFound(f"model file {path} is gone; put it back") from error
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror or error}") from error


def _about(path: Path, file: FileIO) -> LocalFile:
    """Return the opened file as it is now, without a digest."""
    found = os.fstat(file.fileno())
    return LocalFile(path=str(path), inode=found.st_ino, size_bytes=found.st_size, modified_ns=found.st_mtime_ns, digest="")


def _hash_span(file: FileIO, hasher: hashlib._Hash, buffer: memoryview) -> int:
    """Hash the next SPAN_BYTES and return how many bytes there were; 0 at the end."""
    done = 0
    while done < SPAN_BYTES and (count := file.readinto(buffer)):
        hasher.update(buffer[:count])
        done += count
    return done
