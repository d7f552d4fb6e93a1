"""What a backup says of itself: `manifest.json`, the first member of its archive.

In: figures and parts. Out: JSON, and from JSON a manifest that can be trusted to name only files below a directory. The hash of each
part is in it, so half of a file, or a file that was changed, is no backup.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition

__all__ = ["FORMAT", "MANIFEST", "STORE", "Manifest", "Part", "Store", "parse_manifest"]

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
STORE: Final = "store.db"
MANIFEST_BYTES_MAX: Final = 1 << 20  # A thousand parts take 200 kB.


class Part(msgspec.Struct, frozen=True):
    """A file of the backup; `name` is relative to the data directory, with slashes."""

    name: str
    bytes: int
    sha256: str


class Store(msgspec.Struct, frozen=True, rename="camel"):
    """What the store's copy holds."""

    schema_version: int
    revision: int
    objects: int


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """All of it.

    Attributes:
        format: Of this manifest and the archive.
        rkfleet: Release that made it.
        fleet_id: Fleet that it is of; empty for a store that was copied without its files.
        time: When it was begun, RFC 3339.
        store: None where the store is in PostgreSQL.
        parts: In the order of the archive.
    """

    format: int
    rkfleet: str
    fleet_id: str
    time: str
    store: Store | None
    parts: tuple[Part, ...]


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Read a manifest.

    Args:
        text: Its JSON.
        name: What messages call the backup.

    Raises:
        FailedPrecondition: It is none, of a newer format, or names files outside of a data directory.
    """
    try:
        found = msgspec.json.decode(text, type=_Format)
        if found.format != FORMAT:
            raise FailedPrecondition(
                f"{name} is a backup of format {found.format}, rkfleet {found.rkfleet} made it; this rkfleet knows format {FORMAT}:"
                " restore it with that release or a newer one"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{name} is no backup of a controller: its {MANIFEST} cannot be read ({error})") from error
    for part in manifest.parts:
        path = PurePosixPath(part.name)
        if path.is_absolute() or ".." in path.parts or str(path) != part.name or "\0" in part.name or not path.parts:
            raise FailedPrecondition(f"{name} names the file {part.name!r}, which is not below a data directory; do not use this backup")
    return manifest


class _Format(msgspec.Struct):
    format: int
    rkfleet: str = "(unknown)"
