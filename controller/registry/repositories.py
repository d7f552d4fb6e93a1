"""Repositories: which blobs and manifests a name holds, and what its tags point at.

In: finished blobs and the bytes of manifests. Out: manifests by tag or digest, and whether a blob may be read under a name. The routes are
the only caller. On disk a repository is a directory of small files (`_blobs/<hex>`, `_manifests/<hex>`, `_tags/<tag>`; a name part never
begins with `_`, so nested names cannot meet them); manifests themselves are blobs. All methods block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from controller.registry.blobs import BlobStore, disk_full
from rkfleet.disk import Disk, is_disk_full, write_durably
from rkfleet.errors import Invalid, NotFound
from rkfleet.packaging import MANIFEST_MEDIA_TYPE, Blob, blob_of, check_digest

__all__ = ["MANIFEST_BYTES_MAX", "Manifest", "Repositories", "check_repository"]

MANIFEST_BYTES_MAX: Final = 4 << 20  # What the distribution spec asks registries to accept, and enough for thousands of files.
NAME_LENGTH_MAX: Final = 255  # With the host, what many clients accept; namespace and model names are far shorter.
_NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


class Manifest(msgspec.Struct, frozen=True):
    """A stored manifest: its exact bytes, their digest, and the media type they declare."""

    blob: Blob
    media_type: str


def check_repository(name: str) -> str:
    """Return the repository name.

    Raises:
        Invalid: It is not a name as the distribution spec writes them.
    """
    if len(name) > NAME_LENGTH_MAX or _NAME.fullmatch(name) is None:
        raise Invalid(f"repository name {name[:80]!r} must be lower-case words divided by / . _ -", code="NAME_INVALID")
    return name


class Repositories:
    """All repositories below one directory."""

    def __init__(self, directory: Path, blobs: BlobStore, disk: Disk, scratch: Callable[[], Path]) -> None:
        """Take the directory, the blobs, and a source of file names on the same file system that a restart cleans up."""
        self._directory: Final = directory
        self._blobs: Final = blobs
        self._disk: Final = disk
        self._scratch: Final = scratch
        directory.mkdir(parents=True, exist_ok=True)

    def link_blob(self, repository: str, digest: str) -> None:
        """Make a stored blob readable in a repository.

        Raises:
            Unavailable: The disk is full.
        """
        self._write(self._link(repository, "_blobs", digest), b"")

    def find_blob(self, repository: str, digest: str) -> int | None:
        """Return the length of a blob that the repository holds, or None."""
        return self._blobs.find_size(digest) if self._link(repository, "_blobs", digest).exists() else None

    def put_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> Manifest:
        """Store a manifest under a tag or its digest.

        Raises:
            Invalid: It is no manifest, its digest is not `reference`, or it names what the repository does not hold.
            Unavailable: The disk is full.
        """
        blob = blob_of(body)
        if ":" in reference and reference != blob.digest:
            raise Invalid(f"the manifest has digest {blob.digest}, its URL says {reference[:80]}", code="DIGEST_INVALID")
        manifest = Manifest(blob, self._check_manifest(repository, body, media_type))
        link = self._link(repository, "_manifests", blob.digest)
        if self._blobs.find_size(blob.digest) is None:
            self._write(self._blobs.path(blob.digest), body)
        if not link.exists():
            self._write(link, manifest.media_type.encode())
        if ":" not in reference:
            tag = self._tag(repository, reference)
            if not tag.exists() or tag.read_text() != blob.digest:
                self._write(tag, blob.digest.encode())
        return manifest

    def manifest(self, repository: str, reference: str) -> Manifest:
        """Return the manifest that a tag or digest names.

        Raises:
            NotFound: The repository has no such manifest.
        """
        try:
            digest = reference if ":" in reference else self._tag(repository, reference).read_text()
            media_type = self._link(repository, "_manifests", digest).read_text()
            return Manifest(Blob(digest, self._blobs.path(digest).read_bytes()), media_type)
        except FileNotFoundError as error:
            raise NotFound(f"repository {repository!r} has no manifest {reference[:80]!r}", code="MANIFEST_UNKNOWN") from error

    def tags(self, repository: str) -> tuple[str, ...]:
        """Return all tags in lexical order.

        Raises:
            NotFound: There is no such repository.
        """
        directory = self._directory / check_repository(repository)
        if not directory.is_dir():
            raise NotFound(f"there is no repository {repository!r}", code="NAME_UNKNOWN")
        tags = directory / "_tags"
        return tuple(sorted(path.name for path in tags.iterdir())) if tags.is_dir() else ()

    def _check_manifest(self, repository: str, body: bytes, content_type: str) -> str:
        """Return the media type of a manifest whose content is all here."""
        try:
            manifest = msgspec.json.decode(body, type=dict[str, Any])
            descriptors = tuple(_descriptors(manifest))
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise Invalid(f"the body is not a manifest: {error!r}", code="MANIFEST_INVALID") from error
        said = content_type.partition(";")[0].strip()
        declared = manifest.get("mediaType", said or MANIFEST_MEDIA_TYPE)
        if said and declared != said:
            raise Invalid(f"the manifest's mediaType {declared!r} is not its Content-Type {said!r}", code="MANIFEST_INVALID")
        for field, digest in descriptors:
            directory = "_manifests" if field.startswith("manifests") else "_blobs"
            if not self._link(repository, directory, digest).exists() or self._blobs.find_size(digest) is None:
                raise Invalid(f"{field} {digest} is not in repository {repository!r}; push it first", code="MANIFEST_BLOB_UNKNOWN")
        return str(declared)

    def _write(self, path: Path, body: bytes) -> None:
        if path.exists() and path.stat().st_size == len(body) == 0:
            return
        self._blobs.ensure_room(len(body))
        try:
            write_durably(path, body, self._scratch(), self._disk)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(f"{len(body)} bytes of {path.parent.name.lstrip('_')} could not be stored") from error
            raise

    def _link(self, repository: str, kind: str, digest: str) -> Path:
        return self._directory / check_repository(repository) / kind / check_digest(digest)

    def _tag(self, repository: str, tag: str) -> Path:
        if _TAG.fullmatch(tag) is None:
            raise Invalid(f"tag {tag[:140]!r} must be up to 128 letters, digits and . _ -", code="TAG_INVALID")
        return self._directory / check_repository(repository) / "_tags" / tag


def _descriptors(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, digest) of everything that a manifest or index names, except its subject, which may come later."""
    if "manifests" not in manifest:
        yield "config", manifest["config"]["digest"]
    for field in ("layers", "manifests"):
        for position, descriptor in enumerate(manifest.get(field, ())):
            yield f"{field}[{position}]", descriptor["digest"]
