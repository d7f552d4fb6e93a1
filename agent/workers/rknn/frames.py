"""The pipe between a worker and its encoder's process: a JSON head and a binary body, each with its length before it. No I/O.

The worker sends `Open` once and gets `Opened` or `Failed`; then for each `Encode`, whose body is an image file, it gets `Embedded`, whose
body is float32 in little endian, or `Refused` (the image is at fault) or `Broken` (the encoder is). One request at a time.

Used by `agent/workers/rknn/encoder.py` and `agent/workers/rknn/child.py`.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from agent.workers.rknn.settings import EncoderSettings
from rkfleet.errors import Internal

__all__ = [
    "BODY_BYTES_MAX", "PREFIX_BYTES", "Broken", "Embedded", "Encode", "Failed", "Open", "Opened", "Refused", "Reply", "Request",
    "decode_reply", "decode_request", "encode_frame", "frame_sizes",
]  # fmt: skip

HEAD_BYTES_MAX: Final = 64 << 10  # Paths, settings, one sentence.
# 1,024 tokens of 4,096 numbers and four layers take 64 MiB; the largest encoder of the vendor's table gives 6 MiB.
BODY_BYTES_MAX: Final = 64 << 20
_PREFIX: Final = struct.Struct(">II")
PREFIX_BYTES: Final = _PREFIX.size


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Load this encoder; with `trial`, encode a grey image to see what it gives."""

    path: str
    settings: EncoderSettings
    trial: bool


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Encode the image file in the body."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """The encoder is loaded; in a trial it gave so many tokens of so many numbers, without one both are 0."""

    tokens: int = 0
    embedding_size: int = 0


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The encoder cannot be loaded; the process ends after this."""

    message: str


class Embedded(msgspec.Struct, frozen=True, kw_only=True, tag="embedded"):
    """The embedding is in the body; width and height are the encoder's input."""

    tokens: int
    width: int
    height: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The image cannot be read; the client is at fault."""

    message: str


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """The encoder gave no embedding for a good image."""

    message: str


Request = Open | Encode
Reply = Opened | Failed | Embedded | Refused | Broken


def encode_frame(message: Request | Reply, body: bytes = b"") -> tuple[bytes, bytes]:
    """Return the frame's prefix with its head, and its body.

    Raises:
        Internal: One of them is longer than the pipe allows.
    """
    head = msgspec.json.encode(message)
    if len(head) > HEAD_BYTES_MAX or len(body) > BODY_BYTES_MAX:
        raise Internal(f"encoder pipe: a frame of {len(head)} and {len(body)} bytes is longer than {HEAD_BYTES_MAX} and {BODY_BYTES_MAX}")
    return _PREFIX.pack(len(head), len(body)) + head, body


def frame_sizes(prefix: bytes) -> tuple[int, int]:
    """Return the lengths of head and body.

    Raises:
        Internal: They are beyond the limits, so these are not the bytes of a frame.
    """
    head, body = _PREFIX.unpack(prefix)
    if head > HEAD_BYTES_MAX or body > BODY_BYTES_MAX:
        raise Internal(f"encoder pipe: {head} and {body} bytes are no frame")
    return head, body


def decode_request(head: bytes) -> Request:
    """Read what the worker wrote.

    Raises:
        Internal: It is no request.
    """
    try:
        request: Request = msgspec.json.decode(head, type=Request)
    except msgspec.MsgspecError as error:
        raise Internal(f"encoder pipe: {len(head)} bytes are no request") from error
    return request


def decode_reply(head: bytes) -> Reply:
    """Read what the encoder's process wrote.

    Raises:
        Internal: It is no reply.
    """
    try:
        reply: Reply = msgspec.json.decode(head, type=Reply)
    except msgspec.MsgspecError as error:
        raise Internal(f"encoder pipe: {len(head)} bytes are no reply") from error
    return reply
