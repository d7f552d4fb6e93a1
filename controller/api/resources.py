"""The verbs of the API on one target: from a request to a response, for every kind alike.

In: a Starlette request and the `Target` of its path. Out: a response. Reading and watching go to the store, writing through `writes.py`;
which form the answer has is `negotiation.py`, how it is encoded `views.py`. `app.py` authorizes before it calls `serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from controller.api import auth, bodies, negotiation, patch, query, subresources
from controller.api.errors import MethodNotAllowed, TooLargeVersion
from controller.api.paths import Target
from controller.api.responses import json_response
from controller.api.scope import IDENTITY, note
from controller.api.views import View
from controller.api.watch import open_watch
from controller.api.writes import Change, Writes, Written
from controller.store.base import Store
from controller.store.writes import merge_patch
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, Expired

__all__ = ["Resources", "verb_of"]

Json = dict[str, Any]


def verb_of(request: Request, target: Target) -> str:
    """Return what the request does, in the words of authorization.

    Raises:
        MethodNotAllowed: The path does not know the method.
    """
    if target.kind.resource.read_only and request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(
            f"the server does not allow the method {request.method} on {target.kind.resource.plural}, which are only read"
        )
    over_all_namespaces = target.kind.resource.namespaced and not target.namespace
    if target.subresource == "log":
        if request.method != "GET":
            raise MethodNotAllowed(f"the server does not allow the method {request.method} on a log")
        return "get"
    match request.method, bool(target.name):
        case "GET", _ if query.is_watch(request.query_params):
            return "watch"
        case "GET" | "HEAD", True:
            return "get"
        case "GET" | "HEAD", False:
            return "list"
        case "POST", False if not over_all_namespaces:
            return "create"
        case "PUT", True:
            return "update"
        case "PATCH", True:
            return "patch"
        case "DELETE", True if not target.subresource:
            return "delete"
        case "DELETE", False if not over_all_namespaces:
            return "deletecollection"
        case method, _:
            raise MethodNotAllowed(f"the server does not allow the method {method} on the requested resource")


class Resources:
    """Serves every kind.

    Args:
        store: Where objects live.
        writes: The write path over the same store.
        clock: Gives ages in tables, and the ends and bookmarks of watches.
        stopping: When it is set, every watch ends.
    """

    def __init__(self, store: Store, writes: Writes, clock: Clock, stopping: asyncio.Event) -> None:
        self._store: Final = store
        self._writes: Final = writes
        self._clock: Final = clock
        self._stopping: Final = stopping

    async def serve(self, request: Request, target: Target, verb: str) -> Response:
        """Return the answer to an authorized request.

        Raises:
            FleetError: As the store, admission and the readers of bodies and queries raise them.
        """
        view = self._view(request, target)  # first: a write whose answer cannot be made must not happen
        match verb:
            case "get":
                return await self._get(request, target, view)
            case "list":
                return await self._list(request, target, view)
            case "watch":
                options = query.read_options(request.query_params, target.namespace, target.name)
                return await open_watch(self._store, target, options, view, self._stopping)
            case "create":
                body = await bodies.read_json(request)
                written = await self._writes.create(target, body, _options(request, target))
                note(request.scope, "name", written.item.ref.name)
                return await _written(view, written, status_code=201)
            case "update":
                body = await bodies.read_json(request)
                return await self._change(request, target, view, lambda _: body)
            case "patch":
                return await self._patch(request, target, view)
            case "delete":
                return await self._delete(request, target, view)
            case _:
                return await self._delete_collection(request, target, view)

    def _view(self, request: Request, target: Target) -> View:
        form = negotiation.form_of(request.headers.get("accept", ""))
        include = request.query_params.get("includeObject") or "Metadata"
        if include not in ("None", "Metadata", "Object"):
            raise BadRequest(f"includeObject is {include!r}, it must be None, Metadata or Object")
        return View(target.kind, form, include, self._clock)

    async def _get(self, request: Request, target: Target, view: View) -> Response:
        item = await self._store.get(target.ref)
        if target.subresource == "scale":
            return await json_response(subresources.scale_of(msgspec.json.decode(item.body)))
        return await _read(request, view.item(item))

    async def _list(self, request: Request, target: Target, view: View) -> Response:
        options = query.read_options(request.query_params, target.namespace)
        page = await self._store.list(
            target.kind.resource.name, options.selection, limit=options.limit, continue_token=options.continue_token
        )
        if options.resource_version and int(options.resource_version) > int(page.resource_version):
            raise TooLargeVersion(options.resource_version, page.resource_version)
        if options.exact and page.resource_version != options.resource_version:
            raise Expired(
                f"resourceVersion {options.resource_version} is not the newest, and only that can be listed; list again without it"
            )
        return await _read(request, await view.page(page))

    async def _patch(self, request: Request, target: Target, view: View) -> Response:
        format, body = await bodies.read_patch(request, built_in=target.kind.resource.built_in)
        if format != "apply":
            return await self._change(request, target, view, _patcher(format, body))
        config = bodies.require_object(body, f"a {target.kind.resource.kind}")
        options = _judged(query.write_options(request.query_params, apply=True), request, target)
        if target.subresource == "scale":
            part = subresources.part_of_scale(target.kind.resource, config)
            return await _scale(await self._writes.apply(_whole(target), part, options, through="scale"))
        written = await self._writes.apply(target, config, options)
        return await _written(view, written, status_code=201 if written.created else 200)

    async def _change(self, request: Request, target: Target, view: View, make: Change) -> Response:
        options = _options(request, target)
        if target.subresource != "scale":
            return await _written(view, await self._writes.change(target, make, options))
        return await _scale(
            await self._writes.change(
                _whole(target), lambda old: subresources.with_scale(old, make(subresources.scale_of(old))), options, through="scale"
            )
        )

    async def _delete(self, request: Request, target: Target, view: View) -> Response:
        written = await self._writes.delete(target, await bodies.read_delete_options(request))
        if not written.removed:
            return await _written(view, written)
        resource = target.kind.resource
        details = {"name": target.name, "group": resource.group, "kind": resource.plural, "uid": written.item.uid}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return await json_response({**status, "details": {key: value for key, value in details.items() if value}})

    async def _delete_collection(self, request: Request, target: Target, view: View) -> Response:
        asked = query.read_options(request.query_params, target.namespace)
        page = await self._writes.delete_collection(target, asked, await bodies.read_delete_options(request))
        return await json_response(await view.page(page))


async def _read(request: Request, body: bytes | Sequence[bytes]) -> Response:
    accept_encoding = request.headers.get("accept-encoding", "")
    return await json_response(body, accept_encoding=accept_encoding, pretty=query.is_pretty(request.query_params))


async def _written(view: View, written: Written, *, status_code: int = 200) -> Response:
    return await json_response(view.item(written.item), status_code=status_code, warnings=written.warnings)


def _whole(target: Target) -> Target:
    """Return the object that a subresource is a part of."""
    return msgspec.structs.replace(target, subresource="")


async def _scale(written: Written) -> Response:
    return await json_response(subresources.scale_of(msgspec.json.decode(written.item.body)), warnings=written.warnings)


def _options(request: Request, target: Target) -> query.WriteOptions:
    return _judged(query.write_options(request.query_params, request.headers.get("user-agent", "")), request, target)


def _judged(options: query.WriteOptions, request: Request, target: Target) -> query.WriteOptions:
    return msgspec.structs.replace(options, judge=auth.judge_of(request.scope[IDENTITY], target))


def _patcher(format: bodies.PatchFormat, body: Any) -> Change:
    """Return the function that applies a patch."""
    match format:
        case "json":
            return lambda old: patch.json_patch(old, body)
        case "strategic":
            strategic = bodies.require_object(body, "a strategic merge patch")
            return lambda old: patch.strategic_merge_patch(old, strategic)
        case _:
            return lambda old: merge_patch(old, body)
