"""Disks of boards and the file of the store, with what happens to them.

`BoardDisk` is the agent's `Disk` seam over real files: it can be full, be slow, die with its process in the middle of a write, and lose
what was written and not flushed when the power goes. What a kill leaves is what was on the disk at that very moment: the directory is
copied before anything of the dead process can clean up, and the next boot starts from the copy.

`open_store` opens the shipped `SqlStore` with the shipped writer and no thread: each batch is decided and committed in one step of the
virtual loop, some milliseconds after it was asked for. Its file is SQLite, or `MemoryFile`, which keeps the same rows in memory and is
several times faster; a test holds that the two give the same transcript.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from controller.store.base import Item
from controller.store.broadcaster import Entry
from controller.store.sql.compaction import LogWindow
from controller.store.sql.database import Batch, Contents, Tail
from controller.store.sql.sqlite import SqliteDatabase
from controller.store.sql.store import SqlStore
from controller.store.sql.writer import BATCH_WRITES_MAX, Pending, Writer
from rkfleet.errors import Unavailable
from rkfleet.kinds import KINDS
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from tests.support.scenario.virtual import PROCESS, Killed, Process, VirtualLoop

STORAGE_BYTES = 64 << 30
COMMIT_SECONDS = (0.001, 0.012)


class BoardDisk:
    """Real files of one board.

    Attributes:
        room: Bytes that may still be written; None for plenty.
        kill_after: Calls until the process dies in the middle of one; None for never.
    """

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.room: int | None = None
        self.kill_after: int | None = None
        self.on_kill: Callable[[], None] = lambda: None
        self.looked: Callable[[Path], None] = lambda path: None
        self._chance = chance
        self._flushed: dict[int, int] = {}  # Durable length by inode, of files that were written to.
        self._generation = 0
        self._left: Path | None = None

    def write(self, descriptor: int, data: memoryview) -> int:
        self._die(descriptor, data)
        taken = len(data)
        if self.room is not None:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = min(taken, self.room)
            self.room -= taken
        inode = os.fstat(descriptor)
        self._flushed.setdefault(inode.st_ino, inode.st_size)
        written = os.write(descriptor, data[:taken])
        self._look(descriptor)
        return written

    def flush(self, descriptor: int) -> None:
        self._die(descriptor, None)
        inode = os.fstat(descriptor)
        self._flushed[inode.st_ino] = inode.st_size
        self._look(descriptor)

    def free_bytes(self, path: Path) -> int:
        return STORAGE_BYTES if self.room is None else self.room

    def leave(self, *, power: bool) -> None:
        """Begin the next life of the board with what the disk holds now; without power, what was not flushed may be gone."""
        left, self._left = self._left, None
        if left is None:
            left = self._copy()
        if power:
            for path in sorted(left.rglob("*")):
                if path.is_file() and (durable := self._durable.get(path.relative_to(left))) is not None:
                    size = path.stat().st_size
                    if size > durable:
                        os.truncate(path, self._chance.randint(durable, size))
        self.directory = left
        self._flushed.clear()
        self.kill_after = None

    def _look(self, descriptor: int) -> None:
        self.looked(self.directory)

    def _die(self, descriptor: int, data: memoryview | None) -> None:
        if self.kill_after is None:
            return
        self.kill_after -= 1
        if self.kill_after >= 0:
            return
        self.kill_after = None
        if data is not None and len(data) > 1:
            os.write(descriptor, data[: self._chance.randrange(len(data))])
        self._left = self._copy()
        self.on_kill()
        raise Killed

    def _copy(self) -> Path:
        self._generation += 1
        target = self.directory.with_name(f"{self.directory.name.partition('~')[0]}~{self._generation}")
        self._durable: dict[Path, int] = {}
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and (flushed := self._flushed.get(path.stat().st_ino)) is not None:
                self._durable[path.relative_to(self.directory)] = flushed
        shutil.copytree(self.directory, target)
        return target


class MemoryFile:
    """What `Database` keeps, without a file; it survives the process that uses it."""

    def __init__(self) -> None:
        self._items: dict[Ref, Item] = {}
        self._entries: list[Entry] = []
        self._revision = 0
        self._floor = 0

    def load(self) -> Contents:
        # As read back from a table: what was there before a change is not known any more.
        entries = [Entry(one.revision, one.type, one.item, None) for one in self._entries]
        return Contents(self._revision, self._floor, [self._items[ref] for ref in sorted(self._items)], entries)

    def begin(self, revision: int, *, unsure: bool) -> Tail:
        return self.tail(revision) if unsure else Tail((), self._floor, 0)

    def tail(self, revision: int) -> Tail:
        entries = [Entry(one.revision, one.type, one.item, None) for one in self._entries if one.revision > revision]
        return Tail(entries, self._floor, 0)

    def leave(self) -> None:
        pass

    def commit(self, batch: Batch) -> None:
        if batch.base != self._revision:
            raise Unavailable(f"the file was changed by another program since revision {batch.base}")
        self._revision = batch.revision
        for item in batch.put:
            self._items[item.ref] = item
        for ref in batch.removed:
            self._items.pop(ref, None)
        self._entries.extend(batch.entries)
        if batch.compact:
            self._floor = batch.floor
            self._entries = [one for one in self._entries if one.revision > batch.floor]

    def close(self) -> None:
        pass


class StoreFile:
    """The store's disk: hands batches to the file, and is where it is full and where a process dies around a commit.

    Attributes:
        full: Whether nothing can be written.
        kill: Commits until the writing process dies, and whether that commit is still made; None for never.
        committed: Called with what a commit changed, after it is durable and before anybody is told.
    """

    def __init__(self, file: SqliteDatabase | MemoryFile) -> None:
        self.file = file
        self.full = False
        self.full_at = -1e9  # When a write was refused last.
        self.now: Callable[[], float] = lambda: 0.0
        self.kill: tuple[int, bool] | None = None
        self.on_kill: Callable[[], None] = lambda: None
        self.committed: Callable[[Sequence[Entry]], None] = lambda entries: None

    shared = False

    def load(self) -> Contents:
        return self.file.load()

    def begin(self, revision: int, *, unsure: bool) -> Tail:
        return self.file.begin(revision, unsure=unsure)

    def tail(self, revision: int) -> Tail:
        return self.file.tail(revision)

    def leave(self) -> None:
        self.file.leave()

    def commit(self, batch: Batch) -> None:
        if self.full:
            self.full_at = self.now()
            raise Unavailable("the store cannot be written: the disk is full")
        dies, made = False, True
        if self.kill is not None and batch.entries:
            left, made = self.kill
            self.kill = (left - 1, made) if left else None
            dies = left == 0
        if made or not dies:
            self.file.commit(batch)
            self.committed(batch.entries)
        if dies:
            self.on_kill()
            raise Killed

    def close(self) -> None:
        self.file.close()


class _InlineWriter(Writer):
    """The shipped writer; its thread's loop is one step for each batch that comes, and one each second while there is trouble."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, *args: object, **keywords: object) -> None:
        super().__init__(*args, **keywords)  # type: ignore[arg-type]
        self._loop = loop
        self._chance = chance
        self._due = False

    def submit(self, writes: Sequence[Pending]) -> None:
        self._receive(writes)
        self._later(self._chance.uniform(*COMMIT_SECONDS))

    def _later(self, seconds: float) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(seconds, self._step)

    def _step(self) -> None:
        self._due = False
        try:
            self.turn()
        except Killed:
            return
        if self._waiting:
            self._later(self._chance.uniform(*COMMIT_SECONDS))
        elif self._trouble:
            self._later(1.0)


assert BATCH_WRITES_MAX > 1


def open_store(file: StoreFile, process: Process, loop: VirtualLoop, metrics: Metrics, *, log_events_max: int) -> SqlStore:
    """Open the store as `process`, which must be the caller; there is nothing to close."""
    assert PROCESS.get() is process
    contents = file.load()
    store = SqlStore(KINDS, contents, loop, metrics)
    writer = _InlineWriter(
        loop,
        process.chance,
        file,
        contents.items,
        contents.revision,
        contents.floor,
        window=LogWindow(((entry.revision, len(entry.item.body)) for entry in contents.entries), events_max=log_events_max),
        deliver=store._take,
        monotonic=loop.time,
    )
    store._submit = writer.submit
    return store


async def settle(seconds: float) -> None:
    await asyncio.sleep(seconds)  # noqa: TID251 (virtual time)
