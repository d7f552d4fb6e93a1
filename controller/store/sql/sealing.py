"""Secrets encrypted where they are stored: a database around a database, which seals their rows and opens them again.

In: batches with Secrets in plain JSON. Out: the same batches with rows that only the key file opens; the rest passes through. The store,
its memory and its watches know nothing of it. What tools must see of a row stays readable (kind, name, uid, version, labels, finalizers);
values, and annotations, in which `kubectl apply` repeats them, are in the sealed part.

AES-256-GCM with a random nonce for each row. The name and the uid are bound to it, so that the row of one Secret cannot be put in place of
another. The key file has one base64 line for each key: the first seals, all open. When the first one is new, rows of older ones are sealed
anew at the start.

Source: https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/ (what is protected from whom, rotation); NIST SP 800-38D, 8.2.2
(2^32 random nonces for a key: more writes than a fleet's Secrets ever have).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.sql.database import Batch, Contents, Database, Tail
from rkfleet.errors import FailedPrecondition
from rkfleet.kinds.secret import Secret

__all__ = ["KEY_BYTES", "SealedDatabase", "Sealing", "read_keys"]

KEY_BYTES: Final = 32
KEYS_MAX: Final = 16  # Of one file: the current one and those of rotations that are not over.
_NONCE_BYTES: Final = 12
_HIDDEN: Final = ("annotations", "managedFields")  # Of metadata: may repeat values, or name their keys.

_log: Final = logging.getLogger(__name__)


class _Sealed(msgspec.Struct, frozen=True):
    """The sealed part of a row.

    Attributes:
        key: Id of the key.
        box: Nonce and ciphertext of the whole object, base64.
    """

    key: str
    box: str


class _Row(msgspec.Struct, frozen=True):
    sealed: _Sealed | None = None


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys of a key file.

    Raises:
        FailedPrecondition: It cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
        keys = tuple(base64.b64decode(line, validate=True) for line in lines if line and not line.startswith("#"))
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise FailedPrecondition(f"the key file {path} cannot be read: {error}; restore it from a backup of the controller") from error
    if not 1 <= len(keys) <= KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
        raise FailedPrecondition(
            f"the key file {path} must have 1 to {KEYS_MAX} lines of {KEY_BYTES} bytes in base64 each, as `openssl rand -base64 32` prints"
        )
    return keys


class Sealing:
    """Keys that seal and open rows.

    Args:
        keys: The first seals, all open.
        random_bytes: Source of nonces.
        name: What messages call the key file.
    """

    def __init__(self, keys: Sequence[bytes], random_bytes: Callable[[int], bytes], name: str) -> None:
        self._boxes: Final = {_id(key): AESGCM(key) for key in keys}
        self._first: Final = _id(keys[0])
        self._random_bytes: Final = random_bytes
        self._name: Final = name

    def seal(self, item: Item) -> Item:
        """Return an item whose body only the key opens; items that are no Secrets are returned as they are."""
        if item.ref.resource != Secret.resource.name:
            return item
        obj: dict[str, Any] = msgspec.json.decode(item.body)
        nonce = self._random_bytes(_NONCE_BYTES)
        box = nonce + self._boxes[self._first].encrypt(nonce, item.body, _bound_to(item))
        shown = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "metadata": {field: value for field, value in obj["metadata"].items() if field not in _HIDDEN},
            "sealed": _Sealed(self._first, base64.b64encode(box).decode()),
        }
        return msgspec.structs.replace(item, body=msgspec.json.encode(shown))

    def open(self, item: Item) -> Item:
        """Return an item as it was before it was sealed; one that never was is returned as it is.

        Raises:
            FailedPrecondition: No key opens it.
        """
        if item.ref.resource != Secret.resource.name or (sealed := self._sealed(item)) is None:
            return item
        box = self._boxes.get(sealed.key)
        if box is None:
            raise FailedPrecondition(
                f"Secret {item.ref.namespace}/{item.ref.name} is sealed with the key {sealed.key}, which is not in {self._name}"
                f" (there: {', '.join(self._boxes)}): put the key file there that was used last,"
                " from a backup or another controller, and restart"
            )
        try:
            whole = base64.b64decode(sealed.box)
            body = box.decrypt(whole[:_NONCE_BYTES], whole[_NONCE_BYTES:], _bound_to(item))
        except (InvalidTag, ValueError) as error:
            raise FailedPrecondition(
                f"Secret {item.ref.namespace}/{item.ref.name} was changed in the database by something else than a controller:"
                " delete its row, or restore a backup"
            ) from error
        return msgspec.structs.replace(item, body=body)

    def is_current(self, item: Item) -> bool:
        """Return whether a stored item needs no sealing anew."""
        if item.ref.resource != Secret.resource.name:
            return True
        sealed = self._sealed(item)
        return sealed is not None and sealed.key == self._first

    @staticmethod
    def _sealed(item: Item) -> _Sealed | None:
        return msgspec.json.decode(item.body, type=_Row).sealed


def _id(key: bytes) -> str:
    return hashlib.sha256(b"rkfleet key id " + key).hexdigest()[:8]


def _bound_to(item: Item) -> bytes:
    ref = item.ref
    return f"{ref.resource}\0{ref.namespace}\0{ref.name}\0{item.uid}".encode()


class SealedDatabase:
    """See `controller.store.sql.database.Database`: another one, with its Secrets sealed."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database: Final = database
        self._sealing: Final = sealing
        self.shared: Final = database.shared

    def load(self) -> Contents:
        """See `Database.load`; Secrets in plain or under an older key are sealed anew."""
        stored = self._database.load()
        stale = [item for item in stored.items if not self._sealing.is_current(item)]
        contents = self._opened(stored)
        if stale:
            self._seal_anew([self._sealing.open(item) for item in stale], contents)
        return contents

    def begin(self, revision: int, *, unsure: bool) -> Tail:
        """See `Database.begin`."""
        return self._opened_tail(self._database.begin(revision, unsure=unsure))

    def tail(self, revision: int) -> Tail:
        """See `Database.tail`."""
        return self._opened_tail(self._database.tail(revision))

    def commit(self, batch: Batch) -> None:
        """See `Database.commit`."""
        seal = self._sealing.seal
        entries = [msgspec.structs.replace(entry, item=seal(entry.item)) for entry in batch.entries]
        self._database.commit(msgspec.structs.replace(batch, put=[seal(item) for item in batch.put], entries=entries))

    def leave(self) -> None:
        """See `Database.leave`."""
        self._database.leave()

    def close(self) -> None:
        """See `Database.close`."""
        self._database.close()

    def _seal_anew(self, items: Sequence[Item], contents: Contents) -> None:
        """Write these rows again, without a change that anybody sees; another controller that is faster does the same."""
        tail = self._database.begin(contents.revision, unsure=False)
        if tail.entries or tail.contents is not None:
            self._database.leave()
            return
        self.commit(
            Batch(
                base=contents.revision,
                revision=contents.revision,
                floor=tail.floor,
                compact=False,
                put=items,
                removed=(),
                entries=(),
                base_term=tail.term,
                term=tail.term,
            )
        )
        _log.info("sealed %d Secrets anew", len(items))

    def _opened_tail(self, tail: Tail) -> Tail:
        if tail.contents is not None:
            return msgspec.structs.replace(tail, contents=self._opened(tail.contents))
        return msgspec.structs.replace(tail, entries=self._opened_entries(tail.entries)) if tail.entries else tail

    def _opened(self, contents: Contents) -> Contents:
        items = [self._sealing.open(item) for item in contents.items]
        return msgspec.structs.replace(contents, items=items, entries=self._opened_entries(contents.entries))

    def _opened_entries(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        return [msgspec.structs.replace(entry, item=self._sealing.open(entry.item)) for entry in entries]
