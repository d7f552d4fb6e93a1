"""Answers of the API: JSON bytes with the headers of kube-apiserver, in pieces, compressed where that pays.

In: encoded JSON. Out: a Starlette response. Bytes are written in bounded pieces and large answers are compressed in a thread, because
encrypting or compressing tens of megabytes at once would hold the event loop. Watches never come here: their lines are small and urgent.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rkfleet.clock import give_way

__all__ = ["COMMON_HEADERS", "JsonResponse", "json_response"]

PIECE_BYTES: Final = 256 << 10  # Encrypting this much takes about 0.2 ms.
GZIP_BYTES_MIN: Final = 128 << 10  # As kube-apiserver: below it, a local network is faster than the compressor.
GZIP_LEVEL: Final = 1  # As kube-apiserver: level 1 takes a fifth of the time of level 6 for a tenth more bytes.
PRETTY_BYTES_MAX: Final = 1 << 20  # Indenting this much takes about 5 ms, and nobody reads more.

COMMON_HEADERS: Final[Mapping[str, str]] = {"cache-control": "no-cache, private"}


class JsonResponse(Response):
    """Encoded JSON, sent in pieces."""

    media_type = "application/json"

    def __init__(self, pieces: Sequence[bytes], status_code: int, headers: Mapping[str, str]) -> None:
        length_bytes = sum(map(len, pieces))
        super().__init__(None, status_code, {**headers, "content-length": str(length_bytes)})
        self._pieces: Final = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (Starlette's signature)
        """Send the head, then the body piece by piece; between them the client may catch up and other requests get their turn."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        *pieces, last = [piece[at : at + PIECE_BYTES] for piece in self._pieces for at in range(0, len(piece), PIECE_BYTES)]
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await give_way()
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def json_response(
    body: bytes | Sequence[bytes] | Mapping[str, Any],
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    accept_encoding: str = "",
    pretty: bool = False,
) -> JsonResponse:
    """Return a response of encoded JSON, whole or in pieces, or of a JSON object.

    Args:
        body: What is sent.
        status_code: HTTP status.
        headers: Further headers.
        warnings: Sentences that become one Warning header each.
        accept_encoding: What the client unpacks; large answers are compressed if it names gzip.
        pretty: Indent it for people, unless it has more than `PRETTY_BYTES_MAX`.
    """
    pieces = _pieces(body)
    if pretty and sum(map(len, pieces)) <= PRETTY_BYTES_MAX:
        pieces = (msgspec.json.format(b"".join(pieces), indent=2) + b"\n",)
    all_headers = {**COMMON_HEADERS, **(headers or {})}
    if "gzip" in accept_encoding and sum(map(len, pieces)) >= GZIP_BYTES_MIN:
        pieces = await asyncio.to_thread(_compressed, pieces)
        all_headers |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
    response = JsonResponse(pieces, status_code, all_headers)
    for warning in warnings:
        response.headers.append("warning", f"299 - {_quoted(warning)}")
    return response


def _pieces(body: bytes | Sequence[bytes] | Mapping[str, Any]) -> Sequence[bytes]:
    if isinstance(body, Mapping):
        return (msgspec.json.encode(body),)
    return (body,) if isinstance(body, bytes) else body


def _compressed(pieces: Sequence[bytes]) -> list[bytes]:
    gzip = zlib.compressobj(GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)
    compressed = [gzip.compress(piece) for piece in pieces]
    return [*filter(None, compressed), gzip.flush()]


def _quoted(text: str) -> str:
    """Return a quoted-string of RFC 9110 in ASCII: headers carry nothing else."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(plain.split())}"'
