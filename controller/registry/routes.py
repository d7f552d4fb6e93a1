"""The OCI distribution API: HTTP in, uploads, blobs and repositories out.

What boards, `rkfleet model push` and OCI tools such as oras talk to. Each handler asks the gate first, then makes blocking calls in
threads. Deleting and referrers are not offered: clients are told so in the way the specification foresees (405, and 404 for referrers,
after which they fall back to tags).

Source: OCI distribution-spec 1.1, "Endpoints".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from controller.registry.access import Gate
from controller.registry.answers import API_VERSION, BlobResponse, error_response
from controller.registry.blobs import BlobStore
from controller.registry.ranges import parse_content_range, parse_range
from controller.registry.repositories import MANIFEST_BYTES_MAX, Repositories, check_repository
from controller.registry.uploads import Upload, Uploads
from rkfleet.disk import PIECE_BYTES, in_thread
from rkfleet.errors import BadRequest, FailedPrecondition, FleetError, Invalid, NotFound
from rkfleet.metric_names import REGISTRY_RECEIVED_BYTES, REGISTRY_REQUESTS, REGISTRY_SENT_BYTES
from rkfleet.metrics import Metrics
from rkfleet.ops import ASGIApp, Message, Receive, Send

__all__ = ["create_registry"]

TAGS_PAGE_MAX: Final = 1000


def create_registry(blobs: BlobStore, uploads: Uploads, repositories: Repositories, gate: Gate, metrics: Metrics) -> ASGIApp:
    """Return the application."""
    routes = _Routes(blobs, uploads, repositories, gate, metrics)
    app = Starlette(
        routes=[
            Route("/v2/", routes.base, methods=["GET"]),
            Route("/v2/{name:path}/blobs/uploads/", routes.begin_upload, methods=["POST"]),
            Route("/v2/{name:path}/blobs/uploads/{id}", routes.upload, methods=["GET", "PATCH", "PUT", "DELETE"]),
            Route("/v2/{name:path}/blobs/{digest}", routes.blob, methods=["GET"]),  # starlette adds HEAD
            Route("/v2/{name:path}/manifests/{reference}", routes.read_manifest, methods=["GET"]),
            Route("/v2/{name:path}/manifests/{reference}", routes.write_manifest, methods=["PUT"]),
            Route("/v2/{name:path}/tags/list", routes.tags, methods=["GET"]),
        ],
        exception_handlers={FleetError: _fleet_error, HTTPException: _http_error, ClientDisconnect: _left},
    )
    return _counted(app, metrics)


class _Routes:
    def __init__(self, blobs: BlobStore, uploads: Uploads, repositories: Repositories, gate: Gate, metrics: Metrics) -> None:
        self._blobs: Final = blobs
        self._uploads: Final = uploads
        self._repositories: Final = repositories
        self._gate: Final = gate
        self._received: Final = metrics.counter(REGISTRY_RECEIVED_BYTES)
        self._sent: Final = metrics.counter(REGISTRY_SENT_BYTES)

    async def base(self, request: Request) -> Response:
        """Say that this is a registry, to those who are known."""
        self._gate.enter(request.headers.get("authorization", ""))
        return Response(b"{}", 200, API_VERSION, "application/json")

    async def begin_upload(self, request: Request) -> Response:
        """POST uploads/: mount a blob of another repository, take a whole blob at once, or begin an upload."""
        name = self._admit(request, "push")
        query = request.query_params
        if (mount := query.get("mount")) and await self._mount(request, name, mount, query.get("from", "")):
            return _created(name, "blobs", mount)
        id = await in_thread(self._uploads.begin, name)
        if digest := query.get("digest"):
            async with self._uploads.hold(name, id) as upload:
                await self._receive(request, upload)
                await self._finish(upload, name, digest)
            return _created(name, "blobs", digest)
        return _upload_state(name, id, 0, 202)

    async def upload(self, request: Request) -> Response:
        """GET, PATCH, PUT and DELETE of uploads/<id>: how far it is, more of it, the end of it, and giving it up."""
        name = self._admit(request, "push")
        id = request.path_params["id"]
        if request.method == "DELETE":
            await self._uploads.cancel(name, id)
            return Response(status_code=204, headers=API_VERSION)
        async with self._uploads.hold(name, id) as upload:
            if request.method == "GET":
                return _upload_state(name, id, upload.offset, 204)
            _check_position(request, upload, name, id)
            if request.method == "PATCH":
                await self._receive(request, upload)
                return _upload_state(name, id, upload.offset, 202)
            digest = request.query_params.get("digest", "")
            await self._receive(request, upload)
            await self._finish(upload, name, digest)
            return _created(name, "blobs", digest)

    async def blob(self, request: Request) -> Response | BlobResponse:
        """GET and HEAD of a blob, or a range of it."""
        digest = request.path_params["digest"]
        name = self._admit(request, "pull", digest)
        size = await in_thread(self._repositories.find_blob, name, digest)
        if size is None:
            raise NotFound(f"repository {name!r} has no blob {digest}", code="BLOB_UNKNOWN")
        headers = {
            **API_VERSION,
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Cache-Control": "private, max-age=31536000, immutable",  # a digest never names other bytes
        }
        if request.method == "HEAD":
            return Response(None, 200, {**headers, "Content-Length": str(size)})
        span = parse_range(request.headers.get("range", ""), size)
        start, count = span or (0, size)
        if span:
            headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{size}"
        headers["Content-Length"] = str(count)
        return BlobResponse(self._blobs.path(digest), headers, start=start, count=count, partial=span is not None, sent=self._sent.inc)

    async def read_manifest(self, request: Request) -> Response:
        """GET and HEAD of a manifest by tag or digest."""
        name = self._admit(request, "pull")
        manifest = await in_thread(self._repositories.manifest, name, request.path_params["reference"])
        return Response(manifest.blob.body, 200, {**API_VERSION, "Docker-Content-Digest": manifest.blob.digest}, manifest.media_type)

    async def write_manifest(self, request: Request) -> Response:
        """PUT of a manifest; everything that it names must be in the repository."""
        name = self._admit(request, "push")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MANIFEST_BYTES_MAX:
                raise Invalid(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes", status=413, code="SIZE_INVALID")
        reference = request.path_params["reference"]
        content_type = request.headers.get("content-type", "")
        manifest = await in_thread(self._repositories.put_manifest, name, reference, bytes(body), content_type)
        return _created(name, "manifests", manifest.blob.digest)

    async def tags(self, request: Request) -> Response:
        """List tags, a page at a time when `n` says so."""
        name = self._admit(request, "pull")
        found = await in_thread(self._repositories.tags, name)
        last = request.query_params.get("last", "")
        rest = tuple(tag for tag in found if tag > last)
        try:
            count = min(int(request.query_params.get("n", TAGS_PAGE_MAX)), TAGS_PAGE_MAX)
        except ValueError as error:
            raise BadRequest(f"n={request.query_params['n'][:20]!r} must be a number") from error
        page = rest[: max(count, 0)]
        headers = dict(API_VERSION)
        if page and len(page) < len(rest):
            headers["Link"] = f'</v2/{name}/tags/list?n={count}&last={quote(page[-1])}>; rel="next"'
        return Response(msgspec.json.encode({"name": name, "tags": page}), 200, headers, "application/json")

    def _admit(self, request: Request, action: str, digest: str = "") -> str:
        name = check_repository(request.path_params["name"])
        self._gate.admit(request.headers.get("authorization", ""), name, action, digest)
        return name

    async def _mount(self, request: Request, name: str, digest: str, source: str) -> bool:
        """Link a blob of another repository that the caller may read; False when that cannot be."""
        if not source or not self._gate.enter(request.headers.get("authorization", "")).allows(source, "pull", digest):
            return False
        if await in_thread(self._repositories.find_blob, source, digest) is None:
            return False
        await in_thread(self._repositories.link_blob, name, digest)
        return True

    async def _receive(self, request: Request, upload: Upload) -> None:
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            await in_thread(self._blobs.ensure_room, int(announced))
        async for piece in _pieces(request):
            await in_thread(upload.write, piece)
            self._received.inc(len(piece))

    async def _finish(self, upload: Upload, name: str, digest: str) -> None:
        self._blobs.path(digest)  # refuses what is no digest before anything moves
        await in_thread(upload.finish, digest)
        await in_thread(self._repositories.link_blob, name, digest)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces of about PIECE_BYTES, so that a thread is asked once a megabyte and not once a packet."""
    gathered = bytearray()
    async for part in request.stream():
        gathered += part
        if len(gathered) >= PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _check_position(request: Request, upload: Upload, name: str, id: str) -> None:
    header = request.headers.get("content-range")
    if header is None:
        return
    start, count = parse_content_range(header)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) not in {0, count}:
        raise Invalid(f"Content-Range {header} has {count} bytes, Content-Length says {length}", code="SIZE_INVALID")
    if start != upload.offset:
        raise Invalid(
            f"the chunk begins at byte {start}, this upload goes on at byte {upload.offset}",
            status=416,
            code="BLOB_UPLOAD_INVALID",
            location=f"/v2/{name}/blobs/uploads/{id}",
            range=f"0-{max(upload.offset - 1, 0)}",
        )


def _upload_state(name: str, id: str, offset: int, status: int) -> Response:
    headers = {
        **API_VERSION,
        "Location": f"/v2/{name}/blobs/uploads/{id}",
        "Range": f"0-{max(offset - 1, 0)}",
        "Docker-Upload-UUID": id,
        "Content-Length": "0",
    }
    return Response(None, status, headers)


def _created(name: str, what: str, digest: str) -> Response:
    return Response(None, 201, {**API_VERSION, "Location": f"/v2/{name}/{what}/{digest}", "Docker-Content-Digest": digest})


async def _fleet_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return error_response(error)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Answer what no route takes."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return error_response(FailedPrecondition("this registry does not offer that method here", status=405, code="UNSUPPORTED"))
    return error_response(NotFound("this registry has no such path", code="NOT_FOUND"))


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; what was written stays and can be continued


def _counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Count requests by method and status."""

    async def counted(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.counter(REGISTRY_REQUESTS, method=scope["method"], code=str(message["status"])).inc()
            await send(message)

        await app(scope, receive, observed)

    return counted
