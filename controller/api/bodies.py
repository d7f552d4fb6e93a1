"""Request bodies: read within limits and decoded.

In: a Starlette request. Out: plain JSON (also of a body in protobuf), or `DeleteOptions`. What an object may say is admission's business;
here it must be readable, not too large and not too deep. A missing Content-Type means JSON: `kubectl scale` and the Python client send
none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request

from controller.api import protobuf
from controller.api.duplicates import duplicate_keys
from controller.api.errors import RequestEntityTooLarge, UnsupportedMediaType
from controller.store.base import Propagation
from rkfleet import manifest
from rkfleet.errors import BadRequest, Invalid

__all__ = [
    "BODY_BYTES_MAX",
    "DEPTH_MAX",
    "DeleteOptions",
    "PatchFormat",
    "decode",
    "read_delete_options",
    "read_json",
    "read_patch",
    "require_object",
]

Json = dict[str, Any]
PatchFormat = Literal["apply", "json", "merge", "strategic"]

BODY_BYTES_MAX: Final = 3 << 20  # As kube-apiserver: an object of the largest size, with room for a patch that names it twice.
DEPTH_MAX: Final = 64  # No kind nests deeper than 12; recursion over a body must stay far from the interpreter's limit.
VALUES_MAX: Final = 40_000  # Of one body, objects, lists and scalars alike: judging this many takes 50 ms. The largest Models have 5,000.
YAML_BYTES_MAX: Final = 32 << 10  # Of a body in YAML, which is read at 1 MB/s; clients send JSON, people send a page.

_FLOW_MAP: Final = re.compile(rb"\s*\{\s*[^\s\"}]")
"""A map in braces whose first key has no quotes: YAML, and no JSON."""

_PATCH_FORMATS: Final[dict[str, PatchFormat]] = {
    "application/apply-patch+json": "apply",
    "application/apply-patch+yaml": "apply",
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
}


class _Preconditions(msgspec.Struct, frozen=True, rename="camel"):
    """What must be true of the object for it to be deleted."""

    uid: str = ""
    resource_version: str = ""


class DeleteOptions(msgspec.Struct, frozen=True, rename="camel"):
    """How to delete; from the body, the query, or both."""

    preconditions: _Preconditions = _Preconditions()
    propagation_policy: Propagation = "Background"
    dry_run: tuple[str, ...] = ()


async def read_json(request: Request, *, media_types: Collection[str] = ("", "application/json")) -> Any:
    """Return the decoded body.

    Raises:
        BadRequest: It is not JSON, or deeper than `DEPTH_MAX`.
        RequestEntityTooLarge: It has more than `BODY_BYTES_MAX`.
        UnsupportedMediaType: It is declared as none of `media_types`; "" stands for no declaration.
    """
    if _media_type(request) == protobuf.MEDIA_TYPE:
        return protobuf.decode_protobuf(await _read(request))
    _require_media_type(request, media_types)
    return decode(await _read(request))


def decode(body: bytes) -> Any:
    """Decode JSON of a bounded depth.

    Raises:
        BadRequest: It is not JSON, deeper than `DEPTH_MAX`, has more than `VALUES_MAX` values, or a key twice in one object.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest(f"the body nests deeper than {DEPTH_MAX} levels") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    _check_shape(value)
    if twice := duplicate_keys(body, value):
        raise BadRequest("strict decoding error: " + ", ".join(f'duplicate field "{path}"' for path in twice))
    return value


async def read_patch(request: Request, *, built_in: bool) -> tuple[PatchFormat, Any]:
    """Return the patch in the body and its format; strategic merge is for built-in kinds, as on a real cluster.

    Raises:
        BadRequest, RequestEntityTooLarge: As `read_json`.
        UnsupportedMediaType: It is no patch that this server applies to the kind.
    """
    known = {media_type: format for media_type, format in _PATCH_FORMATS.items() if built_in or format != "strategic"}
    _require_media_type(request, known)
    format, body = known[_media_type(request)], await _read(request)
    return format, await _decode_yaml(body) if _media_type(request).endswith("yaml") else decode(body)


async def _decode_yaml(body: bytes) -> Any:
    """Decode one YAML document; JSON, which clients send, is read as such.

    Raises:
        BadRequest: It is no YAML, more than one document, one with aliases or duplicate keys, deeper than `DEPTH_MAX`, or has more than
            `VALUES_MAX` values.
        RequestEntityTooLarge: It has more than `YAML_BYTES_MAX`.
    """
    if body.lstrip()[:1] == b"{":
        # What begins so may still be YAML, `{name: x}`; what is neither is told as JSON, because that is what was meant.
        try:
            return decode(body)
        except BadRequest:
            if len(body) > YAML_BYTES_MAX or not _FLOW_MAP.match(body):
                raise
    if len(body) > YAML_BYTES_MAX:
        raise RequestEntityTooLarge(f"the body has {len(body)} bytes of YAML, at most {YAML_BYTES_MAX} are read; send it as JSON")
    try:
        parsed = await asyncio.to_thread(manifest.parse, manifest.Source("the body", body))
    except Invalid as error:
        raise BadRequest(error.message) from error
    _check_shape(parsed.value)
    return parsed.value


def require_object(value: Any, what: str) -> Json:
    """Return `value` as a JSON object.

    Raises:
        BadRequest: It is none.
    """
    if not isinstance(value, dict):
        raise BadRequest(f"the body has something else than a JSON object where {what} must stand")
    return value


async def read_delete_options(request: Request) -> DeleteOptions:
    """Return the delete options of body and query; what the body says wins.

    Raises:
        BadRequest: They cannot be read.
    """
    is_protobuf = _media_type(request) == protobuf.MEDIA_TYPE
    if not is_protobuf:
        _require_media_type(request, ("", "application/json"))
    body = await _read(request)
    options = {} if not body.strip() else protobuf.decode_protobuf(body) if is_protobuf else decode(body)
    query = request.query_params
    asked = {"propagationPolicy": query.get("propagationPolicy"), "dryRun": query.getlist("dryRun") or None}
    merged = {
        key: value for source in (asked, require_object(options, "DeleteOptions")) for key, value in source.items() if value is not None
    }
    if "propagationPolicy" not in merged and merged.get("orphanDependents", query.get("orphanDependents")) in (True, "true"):
        merged["propagationPolicy"] = "Orphan"
    try:
        return msgspec.convert(merged, DeleteOptions)
    except msgspec.ValidationError as error:
        raise BadRequest(f"invalid DeleteOptions: {error}") from error


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise _too_large()
    return bytes(body)


def _too_large() -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"the body has more than {BODY_BYTES_MAX} bytes")


def _require_media_type(request: Request, known: Collection[str]) -> None:
    media_type = _media_type(request)
    if media_type in known:
        return
    accepted = ", ".join(filter(None, known))
    raise UnsupportedMediaType(
        f"the body of the request was in an unsupported format {media_type!r} - accepted media types include: {accepted}"
    )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_shape(value: Any) -> None:
    """Refuse what no recursion should meet, and what would take long to judge."""
    level, values = [value], 0
    for _ in range(DEPTH_MAX):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]  # fmt: skip
        values += len(level)
        if values > VALUES_MAX:
            raise BadRequest(f"the body has more than {VALUES_MAX} values; an object holds declarations, not data")
    if any(isinstance(one, dict | list) for one in level):
        raise BadRequest(f"the body nests deeper than {DEPTH_MAX} levels")
