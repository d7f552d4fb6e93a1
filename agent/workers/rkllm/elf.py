"""The names that a shared library exports, read from the file: nothing is mapped or run.

In: an open file and its size. Out: a `SharedObject`. Used by `identify.py`. The file may be anything, truncated or made to harm: every
offset is checked against the size before it is read, and what is read is bounded.

Source: System V ABI, chapters 4 and 5 (ELF header, sections, symbol table); both widths, little endian,
as aarch64 and armhf have them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from agent.workers.rkllm.errors import UnknownRuntime

__all__ = ["SharedObject", "read_shared_object"]

# The largest release exports some thousands of names; these bounds are ten times that, and keep a made-up file from filling the memory.
SYMBOLS_MAX: Final = 1 << 16
NAMES_BYTES_MAX: Final = 4 << 20
SECTIONS_MAX: Final = 1 << 10

_SHT_DYNSYM: Final = 11
_SHT_STRTAB: Final = 3
_SHN_UNDEF: Final = 0
_ET_DYN: Final = 3

MACHINES: Final = {3: "i386", 40: "armhf", 62: "x86_64", 183: "aarch64"}


class SharedObject(msgspec.Struct, frozen=True):
    """A shared library.

    Attributes:
        pointer_bytes: 8 or 4.
        machine: `aarch64`, `armhf`, or another name or number.
        symbols: Names defined for others whose beginning was asked for.
    """

    pointer_bytes: int
    machine: str
    symbols: frozenset[str]


class _Class(msgspec.Struct, frozen=True):
    """Where things stand in a file of one width.

    Attributes:
        header: Type, machine, offset of the sections, their entry size and their number.
        section: Type, offset, size, link and entry size of one section.
        symbol: Offset of the name, and index of the section (0 = taken from elsewhere).
    """

    pointer_bytes: int
    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct


_CLASSES: Final = {
    1: _Class(4, struct.Struct("<16xHH4x4x4xI4x2x2x2xHH2x"), struct.Struct("<4xI4x4xIII4x4xI"), struct.Struct("<I4x4x2xH")),
    2: _Class(8, struct.Struct("<16xHH4x8x8xQ4x2x2x2xHH2x"), struct.Struct("<4xI8x8xQQI4x8xQ"), struct.Struct("<I2xH16x")),
}


def read_shared_object(descriptor: int, size: int, prefix: str) -> SharedObject:
    """Return what the library exports under names that begin with `prefix`.

    Raises:
        UnknownRuntime: It is no ELF library of a supported kind, or is damaged.
    """
    head = _read(descriptor, size, 0, min(size, 64), "header")
    if head[:4] != b"\x7fELF":
        raise UnknownRuntime(f"it is no shared library: it starts with {head[:8]!r}, not with ELF")
    kind = _CLASSES.get(head[4]) if len(head) > 6 else None
    if kind is None or head[5] != 1:
        raise UnknownRuntime("its ELF header is neither 32-bit nor 64-bit little endian")
    if len(head) < kind.header.size:
        raise UnknownRuntime(f"its ELF header ends after {len(head)} bytes: the copy is truncated")
    object_type, machine, sections_at, entry_bytes, count = kind.header.unpack_from(head)
    if object_type != _ET_DYN:
        raise UnknownRuntime(f"its ELF type is {object_type}, not a shared library ({_ET_DYN})")
    if not 0 < count <= SECTIONS_MAX or entry_bytes != kind.section.size:
        raise UnknownRuntime(f"its section table has {count} entries of {entry_bytes} bytes: it was stripped of it, or is damaged")
    table = _read(descriptor, size, sections_at, count * entry_bytes, "section table")
    sections = list(kind.section.iter_unpack(table))
    symbols: set[str] = set()
    for section_type, offset, length, link, symbol_bytes in sections:
        if section_type != _SHT_DYNSYM:
            continue
        if symbol_bytes != kind.symbol.size or link >= count or sections[link][0] != _SHT_STRTAB:
            raise UnknownRuntime("its table of dynamic symbols is damaged")
        if length // symbol_bytes > SYMBOLS_MAX or sections[link][2] > NAMES_BYTES_MAX:
            raise UnknownRuntime(f"its table of dynamic symbols is beyond {SYMBOLS_MAX} symbols or {NAMES_BYTES_MAX} bytes of names")
        entries = _read(descriptor, size, offset, length - length % symbol_bytes, "symbol table")
        names = _read(descriptor, size, sections[link][1], sections[link][2], "symbol names")
        symbols.update(_names(kind, entries, names, prefix.encode()))
        break
    return SharedObject(pointer_bytes=kind.pointer_bytes, machine=MACHINES.get(machine, str(machine)), symbols=frozenset(symbols))


def _names(kind: _Class, entries: bytes, names: bytes, prefix: bytes) -> Iterator[str]:
    for name_at, section in kind.symbol.iter_unpack(entries):
        if section != _SHN_UNDEF and names.startswith(prefix, name_at):
            end = names.find(b"\0", name_at, name_at + NAME_BYTES_MAX)
            if end >= 0:
                yield names[name_at:end].decode("ascii", "replace")


NAME_BYTES_MAX: Final = 256  # of names that count; the longest of the interface has 26


def _read(descriptor: int, size: int, offset: int, length: int, what: str) -> bytes:
    if offset + length > size:
        raise UnknownRuntime(f"its {what} would end at byte {offset + length} of {size}: the copy is truncated or damaged")
    data = os.pread(descriptor, length, offset)
    if len(data) != length:
        raise UnknownRuntime(f"its {what} could not be read whole: the file changes while it is read")
    return data
