"""Writes GGUF files: keys with their types, and tensors one at a time.

In: fields, a plan of tensors, and a callable that gives the bytes of one. Out: a file that appears under its name when it is whole; where
anything fails, nothing is left. Memory is bounded by the largest tensor. Called by `toolkit.conversion` and `toolkit.quantize`.

What `GgufCheckpoint` read (its `fields`, `version` and `alignment`, and `read_raw`) is written again bit by bit.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import msgspec
from numpy.typing import NDArray

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.checkpoint.gguf_fields import Field
from toolkit.checkpoint.gguf_head import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    DIMENSIONS_MAX,
    KEY_BYTES_MAX,
    MAGIC,
    NAME_BYTES_MAX,
    VERSIONS,
    aligned,
)

__all__ = ["PlannedTensor", "planned", "write_gguf_file"]


class PlannedTensor(msgspec.Struct, frozen=True):
    """A tensor that is going to be written.

    Attributes:
        shape: Outermost dimension first, as numpy has it.
        dtype: In the words of GGUF: Q4_0.
        size_bytes: That follow from both.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


def planned(name: str, shape: Sequence[int], dtype: str) -> PlannedTensor:
    """Return the plan of a tensor.

    Raises:
        Invalid: The type is unknown, or rows are no whole number of its blocks, or name or shape have no place in GGUF.
    """
    if not 0 < len(name.encode()) < NAME_BYTES_MAX or "\0" in name:
        raise Invalid(f"tensor name {name!r:.100} cannot be written: it has from 1 to {NAME_BYTES_MAX - 1} bytes and no NUL")
    if len(shape) > DIMENSIONS_MAX or any(one < 0 for one in shape):
        raise Invalid(f"tensor {name} has shape {tuple(shape)}; up to {DIMENSIONS_MAX} dimensions can be written")
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    except KeyError as error:
        raise Invalid(f"tensor {name} would have type {dtype!r}, which is none of GGUF") from error
    row = shape[-1] if shape else 1
    if row % block:
        raise Invalid(f"tensor {name} has rows of {row}, {dtype} has blocks of {block}; keep it F16")
    return PlannedTensor(name, tuple(shape), dtype, math.prod(shape) // block * size)


def write_gguf_file(
    path: Path,
    fields: Mapping[str, Field],
    tensors: Sequence[PlannedTensor],
    data: Callable[[str], NDArray[Any]],
    *,
    version: int = VERSIONS[-1],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a file and return its bytes.

    Args:
        path: File to write; one that is there is replaced when the new one is whole.
        fields: In order; `general.alignment` among them decides where tensors begin.
        tensors: In order.
        data: Called with the name of each tensor in turn; returns its bytes, of any type of array, contiguous.
        version: Of the format; 2 and 3 differ in nothing else.
        progress: Called with bytes written and bytes in all, after each tensor.

    Raises:
        Invalid: A name stands twice, or a tensor has other bytes than its plan.
        FailedPrecondition: The file cannot be written.
    """
    alignment = int(fields[ALIGNMENT_KEY].decode()) if ALIGNMENT_KEY in fields else ALIGNMENT
    if version not in VERSIONS or alignment < 1 or alignment & (alignment - 1):
        raise Invalid(
            f"version {version} with {ALIGNMENT_KEY} {alignment} cannot be written; versions are {VERSIONS}, alignment a power of two"
        )
    head = _head(fields, tensors, version, alignment)
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head)
                _write_tensors(file, tensors, data, alignment, progress)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise FailedPrecondition(f"file {str(path)!r} cannot be written: {error.strerror or error}") from error
    return size


def _head(fields: Mapping[str, Field], tensors: Sequence[PlannedTensor], version: int, alignment: int) -> bytes:
    if len({one.name for one in tensors}) != len(tensors):
        names = [one.name for one in tensors]
        raise Invalid(f"tensor {next(name for name in names if names.count(name) > 1)} is planned twice")
    out = bytearray(MAGIC + struct.pack("<IQQ", version, len(tensors), len(fields)))
    for key, field in fields.items():
        if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
            raise Invalid(f"key {key!r:.80} cannot be written: it has from 1 to {KEY_BYTES_MAX} bytes")
        out += _text(key) + struct.pack("<I", field.type) + field.raw
    offset = 0
    for one in tensors:
        out += _text(one.name) + struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *reversed(one.shape))
        out += struct.pack("<IQ", gguf.GGMLQuantizationType[one.dtype], offset)
        offset = aligned(offset + one.size_bytes, alignment)
    return bytes(out.ljust(aligned(len(out), alignment), b"\0"))


def _write_tensors(
    file: BinaryIO,
    tensors: Sequence[PlannedTensor],
    data: Callable[[str], NDArray[Any]],
    alignment: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    done, total = 0, sum(one.size_bytes for one in tensors)
    for one in tensors:
        values = data(one.name)
        if values.nbytes != one.size_bytes or not values.flags.c_contiguous:
            raise Invalid(f"tensor {one.name} of {one.dtype} {one.shape} has {one.size_bytes} contiguous bytes, was given {values.nbytes}")
        if one.size_bytes:
            file.write(values.data.cast("B"))
        del values  # Before the next one is made.
        file.write(bytes(aligned(one.size_bytes, alignment) - one.size_bytes))
        done += one.size_bytes
        if progress is not None:
            progress(done, total)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _umask() -> int:
    """Return the mask of new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    """Keep the name of the file through a loss of power."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
