"""A file on its way to the board, and the record of how far it is.

In: bytes in order, from the fetcher. Out: a file with a proven digest, or an answer to "where does it go on". It stands apart because the
order of its steps is what a kill at any moment is measured by: a chunk is written, flushed, then recorded, and the record flushed; only
then it counts. So at most one chunk is ever fetched again.

The record is text: a JSON line with digest, size and chunk length, then one line for each chunk with its CRC-32. At a resume each recorded
chunk is read again, which rebuilds the hash over the whole and finds a chunk that the disk lost; from there on it is fetched anew.

All methods block; the fetcher calls them in threads, one at a time.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.disk import PIECE_BYTES, Disk, flush_directory

__all__ = ["CHUNK_BYTES", "Partial"]

CHUNK_BYTES: Final = 4 << 20  # 35 ms of a 1 GbE link and two flushes; larger loses more at a kill, smaller flushes more.


class _Header(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size_bytes: int
    chunk_bytes: int


class Partial:
    """One file being fetched.

    Attributes:
        durable_bytes: Length of the chunks that count; a new connection goes on here.
    """

    def __init__(self, data: Path, record: Path, digest: str, size_bytes: int, *, disk: Disk, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Open the file as far as its record can be believed, or begin it.

        Raises:
            OSError: The disk fails; `is_disk_full` knows whether it is full.
        """
        self._header: Final = _Header(digest, size_bytes, chunk_bytes)
        self._disk: Final = disk
        self._hash = hashlib.sha256()
        self._crc = 0
        self._written = 0  # Bytes of the file, those of the chunk under way included.
        self._record_bytes = 0
        self.durable_bytes = 0
        self._data: Final = os.open(data, os.O_RDWR | os.O_CREAT, 0o600)
        self._record: Final = os.open(record, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._resume(record)
        except BaseException:
            self.close()
            raise
        flush_directory(data.parent)

    def write(self, piece: bytes | bytearray) -> None:
        """Append bytes; whole chunks become durable and count.

        Raises:
            OSError: The disk fails; `rewind` before going on.
        """
        rest = memoryview(piece)
        assert self._written + len(rest) <= self._header.size_bytes, "the fetcher cuts what is beyond the end"
        while rest:
            taken = rest[: self._chunk_end() - self._written]
            self._write_all(taken)
            rest = rest[len(taken) :]
            if self._written == self._chunk_end():
                self._commit()

    def rewind(self) -> None:
        """Forget what does not count: go back to the end of the last durable chunk."""
        if self._written != self.durable_bytes:
            self._hash = self._durable_hash.copy()
            self._crc = 0
            self._written = self.durable_bytes
            _cut(self._data, self.durable_bytes)
            _cut(self._record, self._record_bytes)

    def is_complete(self) -> bool:
        """Return whether all bytes are here and count."""
        return self.durable_bytes == self._header.size_bytes

    def digest(self) -> str:
        """Return the digest of what is here."""
        return f"sha256:{self._hash.hexdigest()}"

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._data)
        os.close(self._record)

    def _resume(self, record: Path) -> None:
        said = record.read_bytes()
        lines = said.split(b"\n")[:-1]  # without the end of line, a line was not written whole
        header = msgspec.json.encode(self._header)
        good = 0
        if lines and lines[0] == header:
            for line in lines[1:]:
                before = self._hash.copy()
                if not self._read_back(line):
                    self._hash = before
                    break
                self.durable_bytes = self._written
                good += 1
        self._durable_hash = self._hash.copy()
        self._written = self.durable_bytes
        _cut(self._data, self.durable_bytes)
        kept = b"".join(line + b"\n" for line in (header, *lines[1 : 1 + good]))
        if said.startswith(kept):
            self._record_bytes = len(kept)
            _cut(self._record, len(kept))
        else:
            _cut(self._record, 0)
            self._append_record(kept)

    def _read_back(self, recorded_crc: bytes) -> bool:
        """Hash the next chunk from the disk; return whether it is what was recorded."""
        end = self._chunk_end()
        crc = 0
        while self._written < end:
            piece = os.pread(self._data, min(PIECE_BYTES, end - self._written), self._written)
            if not piece:
                return False
            self._hash.update(piece)
            crc = zlib.crc32(piece, crc)
            self._written += len(piece)
        return end > self.durable_bytes and _crc_line(crc) == recorded_crc

    def _chunk_end(self) -> int:
        return min(self.durable_bytes + self._header.chunk_bytes, self._header.size_bytes)

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            taken = self._disk.write(self._data, rest)
            self._hash.update(rest[:taken])
            self._crc = zlib.crc32(rest[:taken], self._crc)
            self._written += taken
            rest = rest[taken:]

    def _commit(self) -> None:
        self._disk.flush(self._data)
        self._append_record(_crc_line(self._crc) + b"\n")
        self.durable_bytes = self._written
        self._durable_hash = self._hash.copy()
        self._crc = 0

    def _append_record(self, text: bytes) -> None:
        rest = memoryview(text)
        while rest:
            rest = rest[self._disk.write(self._record, rest) :]
        self._disk.flush(self._record)
        self._record_bytes += len(text)


def _cut(descriptor: int, length: int) -> None:
    os.ftruncate(descriptor, length)
    os.lseek(descriptor, length, os.SEEK_SET)


def _crc_line(crc: int) -> bytes:
    return b"%08x" % crc
