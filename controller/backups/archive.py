"""The file of a backup: a tar with its manifest first, mode 0600, whole or not there.

In: parts, in memory or in files. Out: an archive that any tar reads; and from an archive its manifest and parts, each checked by its hash
while it is read. Nothing is taken by the names in the archive but what the manifest names, in its order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

import msgspec

from controller.backups.manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, Part, parse_manifest
from rkfleet.disk import PIECE_BYTES, move_durably
from rkfleet.errors import FailedPrecondition, Unavailable

__all__ = ["Content", "part_of", "read_archive", "read_manifest", "write_archive"]

MODE: Final = 0o600
Content = bytes | IO[bytes]
"""In memory, or in a file that is open; its position does not matter."""


def part_of(name: str, content: Content) -> Part:
    """Return size and hash of a part.

    Raises:
        Unavailable: Its file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        for piece in (content,) if isinstance(content, bytes) else _pieces(content):
            digest.update(piece)
            size += len(piece)
    except OSError as error:
        raise Unavailable(f"{name} cannot be read: {error.strerror or error}") from error
    return Part(name, size, digest.hexdigest())


def write_archive(target: Path, manifest: Manifest, contents: Mapping[str, Content]) -> int:
    """Write a backup and return its bytes; durable when this returns.

    Raises:
        FailedPrecondition: `target` is there already.
        Unavailable: The disk is full or refuses; nothing is left of it.
    """
    if target.exists():
        raise FailedPrecondition(f"{target} is there already; name another file, or move it")
    scratch = target.with_name(f".{target.name}.partial")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _add(tar, MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
                for part in manifest.parts:
                    _add(tar, part.name, contents[part.name])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        size = scratch.stat().st_size
        move_durably(scratch, target)
    except OSError as error:
        raise Unavailable(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # What is wrong there was told already.
            scratch.unlink(missing_ok=True)
    return size


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises:
        FailedPrecondition: The file is no backup.
        Unavailable: It cannot be read.
    """
    with _opened(path) as tar:
        return _manifest(tar, path)


def read_archive(path: Path, take: Callable[[Part, Iterator[bytes]], None]) -> Manifest:
    """Give every part to `take`, in pieces, and return the manifest; each part is proven by its hash when `take` has read it.

    Raises:
        FailedPrecondition: The file is no backup, or is not what its manifest says.
        Unavailable: It cannot be read, or what `take` raises.
    """
    with _opened(path) as tar:
        manifest = _manifest(tar, path)
        for part in manifest.parts:
            member = tar.next()
            if member is None or member.name != part.name or not member.isreg() or member.size != part.bytes:
                found = "its end" if member is None else f"{member.name} with {member.size} bytes"
                raise FailedPrecondition(
                    f"{path} is damaged: after its manifest {part.name} with {part.bytes} bytes should come, found {found};"
                    " take another backup"
                )
            file = tar.extractfile(member)
            assert file is not None, "a regular member has content"
            digest = hashlib.sha256()
            take(part, _hashed(_pieces(file), digest.update))
            if digest.hexdigest() != part.sha256:
                raise FailedPrecondition(
                    f"{path} is damaged: {part.name} has the sha256 {digest.hexdigest()}, its manifest says {part.sha256};"
                    " take another backup"
                )
        return manifest


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        yield piece


def _hashed(pieces: Iterator[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)
        yield piece


def _manifest(tar: tarfile.TarFile, path: Path) -> Manifest:
    member = tar.next()
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > MANIFEST_BYTES_MAX:
        raise FailedPrecondition(f"{path} is no backup of a controller: it does not begin with {MANIFEST}")
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    return parse_manifest(file.read(), str(path))


def _add(tar: tarfile.TarFile, name: str, content: Content) -> None:
    member = tarfile.TarInfo(name)
    member.mode = MODE
    if isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        return
    content.seek(0)
    member.size = os.fstat(content.fileno()).st_size
    tar.addfile(member, content)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode="r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise FailedPrecondition(f"{path} is no backup of a controller, or a damaged one: {error}; take another") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror or error}") from error
