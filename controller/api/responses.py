"""Answers of the API: JSON bytes with the headers of kube-apiserver, in pieces, compressed where that pays.

In: encoded JSON. Out: a Starlette response. Bytes are written in bounded pieces and large answers are compressed in a thread, because
encrypting or compressing tens of megabytes at once would hold the event loop. Watches never come here: their lines are small and urgent.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["COMMON_HEADERS", "JsonResponse", "json_response"]

PIECE_BYTES: Final = 256 << 10  # Encrypting this much takes about 0.2 ms.
GZIP_BYTES_MIN: Final = 128 << 10  # As kube-apiserver: below it, a local network is faster than the compressor.
GZIP_LEVEL: Final = 1  # As kube-apiserver: level 1 takes a fifth of the time of level 6 for a tenth more bytes.

COMMON_HEADERS: Final[Mapping[str, str]] = {"cache-control": "no-cache, private"}


class JsonResponse(Response):
    """An encoded body, sent in pieces."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (Starlette's signature)
        """Send the head, then the body piece by piece, waiting for the client between them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, max(len(body), 1), PIECE_BYTES):
            more = start + PIECE_BYTES < len(body)
            await send({"type": "http.response.body", "body": bytes(body[start : start + PIECE_BYTES]), "more_body": more})


async def json_response(
    body: bytes | Mapping[str, Any],
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    accept_encoding: str = "",
) -> JsonResponse:
    """Return a response of encoded JSON or of a JSON object; `warnings` become one Warning header each."""
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    all_headers = {**COMMON_HEADERS, **(headers or {})}
    if len(encoded) >= GZIP_BYTES_MIN and "gzip" in accept_encoding:
        encoded = await asyncio.to_thread(gzip.compress, encoded, GZIP_LEVEL)
        all_headers |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
    response = JsonResponse(encoded, status_code, all_headers)
    for warning in warnings:
        response.headers.append("warning", f"299 - {_quoted(warning)}")
    return response


def _quoted(text: str) -> str:
    """Return a quoted-string of RFC 9110 in ASCII: headers carry nothing else."""
    plain = text.encode("ascii", "replace").decode().replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(plain.split())}"'
