"""Whether the rows of a database are a store: every object can be read, is what its row says, and is no newer than the counter.

In: rows, as they are read when a store opens. Out: items, or one error that names the objects that are wrong and says what to do. SQLite
and PostgreSQL check their pages; a bit that was flipped inside a value, a row that somebody edited by hand, or a restored file that is half
of one thing and half of another are found here, before a board is told to do what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.sharing import Sharing
from controller.store.sql.rows import ref_from
from rkfleet.errors import FailedPrecondition

__all__ = ["RESTORE", "checked_items", "checked_revision", "newest_of"]

RESTORE: Final = "restore a backup of it: rkfleet controller restore --data-dir DIR --from FILE"
FAULTS_SHOWN_MAX: Final = 5  # Enough to see whether it is one object or all of them.


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata


_decode: Final = msgspec.json.Decoder(_Object).decode


def checked_items(rows: Iterable[Any], name: str) -> Iterator[Item]:
    """Yield the items of all rows of `objects`.

    Args:
        rows: With the columns of the table as attributes.
        name: What messages call the database.

    Raises:
        FailedPrecondition: After the last row, if some cannot be read, or are not what their rows say; the first of them are named.
    """
    faults: list[str] = []
    count = 0
    sharing = Sharing()
    for row in rows:
        ref = ref_from(row)
        try:
            metadata = _decode(row.body).metadata
            fault = _fault(row, metadata)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            metadata, fault = _Metadata(""), f"cannot be read: {error}"
        if fault:
            count += 1
            if count <= FAULTS_SHOWN_MAX:
                faults.append(f"object {ref} {fault}")
        yield Item(ref, row.uid, str(row.store_revision), sharing.labels(metadata.labels), row.body)
    if count:
        more = f" and {count - FAULTS_SHOWN_MAX} more" if count > FAULTS_SHOWN_MAX else ""
        raise FailedPrecondition(f"{name} is damaged: {'; '.join(faults)}{more}; {RESTORE}")


def checked_revision(revision: int, newest: int, name: str) -> None:
    """Check that the newest revision that is stored is not above what the counter counts.

    Raises:
        FailedPrecondition: Something is: the next writes would take revisions a second time.
    """
    if newest > revision:
        raise FailedPrecondition(f"{name} is damaged: it holds revision {newest} but counts only {revision}; {RESTORE}")


def newest_of(items: Iterable[Item], entries: Sequence[Entry]) -> int:
    """Return the newest revision of objects and of a log in order; 0 without any."""
    return max((*(int(item.resource_version) for item in items), *(entry.revision for entry in entries[-1:])), default=0)


def _fault(row: Any, metadata: _Metadata) -> str:
    """Return how the object differs from its row; empty if it does not."""
    if metadata.resource_version != str(row.store_revision):
        return f"has metadata.resourceVersion {metadata.resource_version!r}, its row says {row.store_revision}"
    if (metadata.namespace, metadata.name) != (row.namespace, row.name):
        return f"calls itself {metadata.namespace}/{metadata.name}"
    if metadata.uid != row.uid:
        return f"has metadata.uid {metadata.uid!r}, its row says {row.uid!r}"
    return ""
