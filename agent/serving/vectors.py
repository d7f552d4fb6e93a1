"""Vectors of embeddings on their way from a worker to a client: asked for one by one, checked, shortened.

In: one input of a client; a worker's answer to it. Out: the body for the worker; the vector as little-endian float32. Called by
`agent/serving/proxy.py`. It has no I/O. A vector that does not come from its own request is worse than an error: two servers of
this field answered 200 with zeros or with an older vector, and nobody noticed before the search results did. So exactly one vector is
taken from exactly one answer, and one of zeros, or with numbers that are none, is a failure.
"""

from __future__ import annotations

import array
import base64
import binascii
import math
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from agent.serving.request import Logits
from rkfleet.errors import BadRequest, Internal

__all__ = ["logits_of", "shortened", "vector_of", "vector_request"]


class _Vector(msgspec.Struct, frozen=True):
    embedding: str | list[float]


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct, frozen=True):
    data: tuple[_Vector, ...]
    usage: _Usage = _Usage()


def vector_request(one: msgspec.Raw, extra: Mapping[str, Any]) -> bytes:
    """Return the body that asks a worker for the vector of one text or one list of tokens."""
    return msgspec.json.encode({"input": one, "encoding_format": "base64", **extra})


def vector_of(body: bytes) -> tuple[bytes, int]:
    """Return the vector, little-endian float32, and the tokens of its input.

    Raises:
        Internal: The worker's answer holds no usable vector, or not exactly one.
    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        (found,) = answer.data
        vector = _floats(found.embedding)
    except (msgspec.MsgspecError, ValueError, binascii.Error) as error:
        raise Internal("the worker did not answer with exactly one vector", code="worker_protocol") from error
    if not vector or not any(vector) or not all(map(math.isfinite, vector)):
        raise Internal("the worker answered with a vector that is empty, all zeros or not finite", code="invalid_embedding")
    return _bytes(vector), answer.usage.prompt_tokens


class _LogitsAnswer(msgspec.Struct, frozen=True):
    logits: str
    vocab_size: int
    usage: _Usage = _Usage()


def logits_of(body: bytes) -> Logits:
    """Return the logits of a worker's answer, handed on as the base64 that they came in.

    Raises:
        Internal: It holds none, or not one number for each word.
    """
    try:
        answer = msgspec.json.decode(body, type=_LogitsAnswer)
        size = len(base64.b64decode(answer.logits, validate=True))
    except (msgspec.MsgspecError, ValueError) as error:
        raise Internal("the worker did not answer with logits", code="worker_protocol") from error
    if not answer.vocab_size or size != answer.vocab_size * 4:
        raise Internal(f"the worker sent {size} bytes as logits of {answer.vocab_size} words", code="worker_protocol")
    return Logits(numbers=answer.logits, vocabulary=answer.vocab_size, prompt_tokens=answer.usage.prompt_tokens)


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """Return the first `dimensions` numbers, scaled to length 1; models that were trained for it keep their meaning.

    Raises:
        BadRequest: The vector has fewer, or nothing is left of it.
    """
    numbers = _floats(base64.b64encode(vector).decode())
    if dimensions is None or dimensions == len(numbers):
        return vector
    if dimensions > len(numbers):
        raise BadRequest(
            f"dimensions is {dimensions}; the vectors of this model have {len(numbers)}", code="invalid_value", param="dimensions"
        )
    kept = numbers[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in kept))
    if not length:
        raise BadRequest(f"nothing is left of this vector in {dimensions} dimensions", code="invalid_value", param="dimensions")
    return _bytes(array.array("f", (number / length for number in kept)))


def _floats(embedding: str | list[float]) -> array.array[float]:
    if isinstance(embedding, list):
        return array.array("f", embedding)
    numbers = array.array("f")
    numbers.frombytes(base64.b64decode(embedding, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _bytes(numbers: array.array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers = array.array("f", numbers)
        numbers.byteswap()
    return numbers.tobytes()
