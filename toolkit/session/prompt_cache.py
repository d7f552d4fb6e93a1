"""Prompts kept in files: keys and values of their tokens, so that a long prompt is run once.

In: a window's cache and its tokens. Out: a file; and back. The format is the house's own and holds numbers only: 8 bytes of magic, the
length of the head as an unsigned little-endian 64-bit number, the head as JSON, keys and values as float32 (layers, kv_heads, tokens, dim).
The head says which weights made them; others refuse the file. Files may come from anybody: every size is compared with the file's own
before anything is taken, and the numbers with their digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np

from rkfleet.errors import FailedPrecondition, Invalid, NotFound, Unavailable
from toolkit.adapters.base import Adapter
from toolkit.checkpoint.base import Array
from toolkit.simulate.cache import KvCache
from toolkit.simulate.hyperparameters import Hyperparameters
from toolkit.simulate.network import Source

__all__ = ["identity_of", "load", "save"]

MAGIC: Final = b"RKFPRMT\x01"  # The last byte is the version.
HEAD_BYTES_MAX: Final = 32 << 20  # A million tokens, the longest context in use, as JSON numbers of embeddings.
_LENGTH_BYTES: Final = 8
_FLOAT: Final = np.dtype("<f4")


class Head(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The JSON of a file.

    Attributes:
        identity: Of the weights (`identity_of`).
        tokens: Keys of the positions, as `toolkit.session.inputs` makes them.
        sha256: Of all that follows the head.
    """

    identity: str
    tokens: list[int]
    sha256: str


def identity_of(source: Source, labels: Sequence[str] = (), adapters: Sequence[tuple[Adapter, float]] = ()) -> str:
    """Return a digest of a model's hyperparameters, its table of tensors, and the numbers of its first and last block and of all norms.

    Fine-tuned models differ in one of these; to read all of the others would take as long as the prompt.

    Args:
        source: An opened model.
        labels: What else decides keys and values: the dtype.
        adapters: With their scales, in the order in which they are put around layers.
    """
    sizes = source.hyperparameters
    digest = hashlib.sha256(msgspec.json.encode([sizes, list(labels)], order="deterministic"))
    for name, info in sorted(source.tensors.items()):
        digest.update(msgspec.json.encode([name, info.shape, info.dtype]))
        if len(info.shape) == 1 or name.startswith(("blk.0.", f"blk.{sizes.layers - 1}.")):
            digest.update(np.ascontiguousarray(source.read(name)).data)
    for adapter, scale in adapters:
        digest.update(msgspec.json.encode(["adapter", scale]))
        for name, low_rank in sorted(adapter.layers.items()):
            digest.update(msgspec.json.encode([name, low_rank.scale, low_rank.down.shape, low_rank.up.shape]))
            digest.update(np.ascontiguousarray(low_rank.down).data)
            digest.update(np.ascontiguousarray(low_rank.up).data)
    return f"sha256:{digest.hexdigest()}"


def save(path: Path, cache: KvCache, tokens: Sequence[int], identity: str) -> int:
    """Write the first positions of a cache, one for each token, whole or not at all; return how many.

    Raises:
        FailedPrecondition: There is no identity, or no token.
        Unavailable: The file cannot be written.
    """
    _named(identity)
    if not tokens:
        raise FailedPrecondition(f"prompt cache {str(path)!r} cannot be written: the session has run no input yet")
    parts = [np.ascontiguousarray(whole[:, :, : len(tokens)], dtype=_FLOAT) for whole in (cache.keys, cache.values)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data)
    head = msgspec.json.encode(Head(identity=identity, tokens=list(tokens), sha256=digest.hexdigest()))
    try:
        opened, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(opened, "wb") as file:
                file.write(MAGIC + len(head).to_bytes(_LENGTH_BYTES, "little") + head)
                for part in parts:
                    file.write(part.data)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise Unavailable(f"prompt cache {str(path)!r} cannot be written: {error.strerror or error}") from error
    return len(tokens)


def load(path: Path, cache: KvCache, sizes: Hyperparameters, identity: str) -> list[int]:
    """Fill a cache from a file, and return the tokens of its positions; a cache that is too small takes the first ones.

    Raises:
        FailedPrecondition: There is no identity.
        NotFound: There is no file.
        Invalid: It is no prompt cache, is cut off or damaged, or other weights made it. The cache is as it was.
    """
    _named(identity)
    if path.exists() and not path.is_file():  # To open a pipe would wait for its writer.
        raise Invalid(f"prompt cache {str(path)!r} is no file")
    try:
        with path.open("rb") as file:
            head = _head(path, file, sizes, identity)
            digest = hashlib.sha256()
            parts = [_part(file, shape, digest) for shape in _shapes(sizes, len(head.tokens))]
    except OSError as error:
        raise NotFound(f"prompt cache {str(path)!r} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != head.sha256 or not all(np.isfinite(part).all() for part in parts):
        raise Invalid(f"prompt cache {str(path)!r} is damaged; delete it, and it is made anew")
    length = min(len(head.tokens), cache.capacity)
    for whole, part in zip((cache.keys, cache.values), parts, strict=True):
        whole[:, :, :length] = part[:, :, :length]
    cache.length = length
    return head.tokens[:length]


def _named(identity: str) -> None:
    if not identity:
        raise FailedPrecondition("prompt caches need the identity of the weights; make the session with identity=identity_of(source)")


def _head(path: Path, file: BinaryIO, sizes: Hyperparameters, identity: str) -> Head:
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(MAGIC) + _LENGTH_BYTES)
    if start[: len(MAGIC) - 1] != MAGIC[:-1] or len(start) < len(MAGIC) + _LENGTH_BYTES:
        raise Invalid(f"file {str(path)!r} is no prompt cache of this toolkit (those of the RKLLM runtime are read by boards only)")
    if start[: len(MAGIC)] != MAGIC:
        raise Invalid(f"prompt cache {str(path)!r} has version {start[len(MAGIC) - 1]}, this toolkit reads {MAGIC[-1]}; delete it")
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if length > min(HEAD_BYTES_MAX, size - len(start)):
        raise Invalid(f"prompt cache {str(path)!r} says its head has {length} bytes; it has {size} in all, and {HEAD_BYTES_MAX} are taken")
    try:
        head = msgspec.json.decode(file.read(length), type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"prompt cache {str(path)!r} has a damaged head: {error}; delete it") from error
    if head.identity != identity:
        raise Invalid(f"prompt cache {str(path)!r} was made by another model, dtype or adapter; take another file name for this one")
    if any(token >= sizes.vocabulary for token in head.tokens):
        raise Invalid(f"prompt cache {str(path)!r} has a token beyond the vocabulary of {sizes.vocabulary}; delete it")
    needed = len(start) + length + sum(math.prod(shape) for shape in _shapes(sizes, len(head.tokens))) * _FLOAT.itemsize
    if needed != size:
        raise Invalid(f"prompt cache {str(path)!r} has {size} bytes; {len(head.tokens)} tokens take {needed}. It is cut off; delete it")
    return head


def _shapes(sizes: Hyperparameters, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows = (sizes.layers, sizes.kv_heads, tokens)
    return (*rows, sizes.head_dim), (*rows, sizes.value_dim)


def _part(file: BinaryIO, shape: tuple[int, ...], digest: hashlib._Hash) -> Array:
    count = math.prod(shape)
    part = np.fromfile(file, _FLOAT, count)
    if part.size != count:
        raise Invalid("the prompt cache became shorter while it was read; try again")
    digest.update(part.data)
    return part.reshape(shape)
