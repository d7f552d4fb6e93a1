"""What the API says about itself: discovery in both forms, OpenAPI v3, and the empty OpenAPI v2 document.

In: the path of a request below `/api`, `/apis` or `/openapi`. Out: a response. `app.py` asks for every path that names no resource.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from controller.api import discovery
from controller.api.errors import MethodNotAllowed, no_such_path
from controller.api.negotiation import wants_aggregated_discovery
from controller.api.openapi import Document, OpenApi
from controller.api.responses import json_response
from rkfleet.kinds.base import Registry

__all__ = ["Documents"]

Json = dict[str, Any]

_OPENAPI_V2: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""Media type of the document that old clients insist on; zero bytes are a valid empty one."""


class Documents:
    """Serves discovery and schemas of one registry of kinds."""

    def __init__(self, registry: Registry) -> None:
        self._registry: Final = registry
        self._openapi: Final = OpenApi(registry)

    async def serve(self, request: Request) -> Response:
        """Return the document at this path.

        Raises:
            NotFound: There is none.
            MethodNotAllowed: It is not being read.
        """
        document = await self._find(request)
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"the server does not allow the method {request.method} on the requested resource")
        return document

    async def _find(self, request: Request) -> Response:
        match request.scope["path"].strip("/").split("/"):
            case ["openapi", "v2"]:
                return Response(b"", media_type=_OPENAPI_V2)
            case ["openapi", "v3"]:
                return await self._schema(request, self._openapi.index)
            case ["openapi", "v3", *path]:
                return await self._schema(request, self._openapi.find("/".join(path)))
            case ["api" | "apis" as root]:
                return await self._roots(request, core=root == "api")
            case ["api", version]:
                return await json_response(discovery.legacy_resources(self._registry, "", version))
            case ["apis", group]:
                return await json_response(discovery.legacy_group(self._registry, group))
            case ["apis", group, version]:
                return await json_response(discovery.legacy_resources(self._registry, group, version))
            case _:
                raise no_such_path()

    async def _roots(self, request: Request, *, core: bool) -> Response:
        if wants_aggregated_discovery(request.headers.get("accept", "")):
            listed = discovery.core(self._registry) if core else discovery.groups(self._registry)
            return await json_response(listed, headers={"content-type": discovery.AGGREGATED_CONTENT_TYPE, "vary": "Accept"})
        listed = discovery.legacy_core() if core else discovery.legacy_groups(self._registry)
        return await json_response(listed, headers={"vary": "Accept"})

    async def _schema(self, request: Request, document: Document | None) -> Response:
        if document is None:
            raise no_such_path()
        headers = {"etag": f'"{document.etag}"', "vary": "Accept-Encoding"}
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return await json_response(document.body, headers=headers, accept_encoding=request.headers.get("accept-encoding", ""))
