"""The API client of rkfleet's own programs: kubeconfig in, objects and `FleetError`s out.

The command line and the gateway use it; it speaks the Kubernetes REST format over HTTPS with a bearer token, so it works against the
embedded controller and against a real kube-apiserver alike. Objects are plain JSON values: what a client does not understand is kept.

`follow` is what a loop wants: the whole collection first, then every change in order; it resumes by itself after a broken connection and
starts over with a whole collection when the server says that the revision is too old.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import httpx2
import msgspec
import yaml

from rkfleet.clock import Clock
from rkfleet.errors import Cause, DeadlineExceeded, Expired, FleetError, Invalid, NotFound, Unavailable, error_for_reason
from rkfleet.kinds import KINDS, Registry
from rkfleet.kinds.base import Resource
from rkfleet.meta import Ref, ResourceName

__all__ = ["TABLE", "ApiClient", "Cluster", "Followed", "Listing", "find_kubeconfig", "load_cluster", "resource_path"]

Json = dict[str, Any]
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]
_CHANGES: Final[Mapping[str, ChangeType]] = {"ADDED": "ADDED", "MODIFIED": "MODIFIED", "DELETED": "DELETED"}

CONNECT_SECONDS_MAX: Final = 5.0
REQUEST_SECONDS_MAX: Final = 60.0
WATCH_SECONDS: Final = 300  # A watch is renewed this often, so that a dead connection is never believed for long.
WATCH_SILENCE_SECONDS_MAX: Final = 90.0  # Bookmarks arrive once a minute; silence beyond that is a broken connection.
TEXT_SILENCE_SECONDS_MAX: Final = 3900.0  # The controller ends a log after an hour; a connection that is dead is not believed for longer.
TEXT_LINE_BYTES_MAX: Final = 64 << 10  # A line without an end is cut; the controller's are below 3 KiB.
LIST_PAGE_ITEMS: Final = 500
TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"  # Accept that asks for the rows of `kubectl get`.
FOLLOW_BACKOFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)  # Local controllers come back in a second or two; the last value repeats.
KUBECONFIG_BYTES_MAX: Final = 1 << 20


class Cluster(msgspec.Struct, frozen=True):
    """How to reach one API server.

    Attributes:
        server: Base URL, https.
        ca_pem: Certificates that may sign the server's; empty trusts the system's.
        token: Bearer token; empty sends none.
        namespace: Namespace that commands use by default.
    """

    server: str
    ca_pem: str = ""
    token: str = ""
    namespace: str = "default"

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context that verifies the server by `ca_pem`."""
        return ssl.create_default_context(cadata=self.ca_pem or None)


class Listing(msgspec.Struct, frozen=True):
    """All objects of a collection, and the version to watch from; of a table the rows, and the definitions of their columns."""

    items: tuple[Json, ...]
    resource_version: str
    columns: tuple[Json, ...] = ()


class Followed(msgspec.Struct, frozen=True):
    """One step of `follow`: the whole collection anew (REPLACED), or one object; of a table rows, and with REPLACED its columns."""

    type: Literal["REPLACED", "ADDED", "MODIFIED", "DELETED"]
    items: tuple[Json, ...]
    columns: tuple[Json, ...] = ()


def find_kubeconfig(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the kubeconfig to use: the given one, $RKFLEET_KUBECONFIG, $KUBECONFIG, ~/.rkfleet/kubeconfig.

    Raises:
        NotFound: The file that was chosen does not exist.
    """
    chosen = given or next(
        (Path(environ[name]) for name in ("RKFLEET_KUBECONFIG", "KUBECONFIG") if environ.get(name)), Path.home() / ".rkfleet" / "kubeconfig"
    )
    if not chosen.is_file():
        raise NotFound(f"kubeconfig {str(chosen)!r} does not exist; start a fleet with `rkfleet up` or give --kubeconfig FILE")
    return chosen


def load_cluster(path: Path) -> Cluster:
    """Read the current context of a kubeconfig.

    Raises:
        Invalid: The file is not a kubeconfig, or its current context is incomplete.
    """
    text = path.read_bytes()
    if len(text) > KUBECONFIG_BYTES_MAX:
        raise Invalid(f"kubeconfig {str(path)!r} has {len(text)} bytes, at most {KUBECONFIG_BYTES_MAX} are allowed")
    try:
        config = yaml.safe_load(text)
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        ca_pem = _inline_or_file(path, cluster, "certificate-authority")
        token = str(user.get("token") or (path.parent / user["tokenFile"]).read_text().strip()) if user else ""
        return Cluster(cluster["server"].rstrip("/"), ca_pem, token, context.get("namespace") or "default")
    except (KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        raise Invalid(f"kubeconfig {str(path)!r} cannot be used: {error!r}") from error


def _named(config: Json, section: str, name: str) -> Json:
    for entry in config[section]:
        if entry["name"] == name:
            found: Json = entry
            return found
    raise KeyError(f"{section} has no entry named {name!r}")


def _inline_or_file(path: Path, cluster: Json, field: str) -> str:
    if data := cluster.get(f"{field}-data"):
        return base64.b64decode(str(data)).decode()
    if file := cluster.get(field):
        return (path.parent / str(file)).read_text()
    return ""


class ApiClient:
    """A connection to one API server; use it as an async context manager.

    Every method raises the `FleetError` that the server's Status names, Unavailable when it cannot be reached, and DeadlineExceeded
    when it does not answer in time.
    """

    def __init__(self, cluster: Cluster, clock: Clock, registry: Registry = KINDS, user_agent: str = "rkfleet") -> None:
        self.cluster: Final = cluster
        self._clock: Final = clock
        self._registry: Final = registry
        headers = {"User-Agent": user_agent}
        if cluster.token:
            headers["Authorization"] = f"Bearer {cluster.token}"
        self._http: Final = httpx2.AsyncClient(
            base_url=cluster.server,
            verify=cluster.ssl_context() if cluster.server.startswith("https:") else False,
            headers=headers,
            timeout=httpx2.Timeout(REQUEST_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Any:
        """Send one request and return the decoded JSON answer; the general form of all methods below."""
        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        content = msgspec.json.encode(body) if body is not None else None
        try:
            answer = await self._http.request(method, path, content=content, params=dict(query or {}), headers=headers)
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded(f"{method} {self.cluster.server}{path}: no answer within {REQUEST_SECONDS_MAX:.0f} s") from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"cannot reach {self.cluster.server}: {error}") from error
        return _decode_answer(answer.status_code, answer.content)

    async def get(self, ref: Ref) -> Json:
        """Return one object."""
        found: Json = await self.request("GET", self.path(ref))
        return found

    async def list(
        self, resource: ResourceName, namespace: str = "", *, labels: str = "", fields: str = "", table: bool = False
    ) -> Listing:
        """Return all objects of a resource, or their rows of a table, page by page; an empty namespace means all."""
        items: list[Json] = []
        columns: tuple[Json, ...] = ()
        query = {"limit": str(LIST_PAGE_ITEMS), "labelSelector": labels, "fieldSelector": fields}
        path = self.path(Ref(resource, namespace, ""))
        while True:
            page = await self.request("GET", path, query={k: v for k, v in query.items() if v}, accept=_accept(table))
            items.extend(page["rows" if table else "items"] or ())
            columns = columns or tuple(page.get("columnDefinitions") or ())
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return Listing(tuple(items), page["metadata"]["resourceVersion"], columns)

    async def create(self, ref: Ref, obj: Json, *, dry_run: bool = False, manager: str = "rkfleet") -> Json:
        """Create an object; unknown fields are refused."""
        created: Json = await self.request(
            "POST", self.path(Ref(ref.resource, ref.namespace, "")), body=obj, query=_write_query(dry_run, manager)
        )
        return created

    async def update(self, ref: Ref, obj: Json, *, dry_run: bool = False, manager: str = "rkfleet") -> Json:
        """Replace an object; a `metadata.resourceVersion` in it must be the stored one."""
        updated: Json = await self.request("PUT", self.path(ref), body=obj, query=_write_query(dry_run, manager))
        return updated

    async def patch(
        self, ref: Ref, patch: Json | Sequence[Json], *, subresource: str = "", dry_run: bool = False, manager: str = "rkfleet"
    ) -> Json:
        """Apply a JSON merge patch, or the operations of a JSON patch."""
        path = self.path(ref) + (f"/{subresource}" if subresource else "")
        query = _write_query(dry_run, manager)
        content_type = f"application/{'merge' if isinstance(patch, dict) else 'json'}-patch+json"
        patched: Json = await self.request("PATCH", path, body=patch, query=query, content_type=content_type)
        return patched

    async def delete(self, ref: Ref, *, uid: str = "", propagation: str = "Background") -> Json:
        """Delete an object, or mark it for deletion while finalizers hold it."""
        body: Json = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        deleted: Json = await self.request("DELETE", self.path(ref), body=body)
        return deleted

    async def watch(
        self,
        resource: ResourceName,
        namespace: str = "",
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        table: bool = False,
    ) -> AsyncGenerator[tuple[str, Json]]:
        """Yield (type, object) for every change after `resource_version`, bookmarks included, until the server ends the stream.

        The first is OPENED, without an object: the server has begun. With `table` each object is a Table of one row.

        Raises:
            Expired: The version is too old; list again.
        """
        query = {
            "watch": "true", "resourceVersion": resource_version, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS), "labelSelector": labels, "fieldSelector": fields,
        }  # fmt: skip
        path = self.path(Ref(resource, namespace, ""))
        timeout = httpx2.Timeout(WATCH_SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        try:
            params, headers = {k: v for k, v in query.items() if v}, {"Accept": _accept(table)}
            async with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as answer:
                if answer.status_code != 200:
                    _decode_answer(answer.status_code, await answer.aread())
                yield "OPENED", {}
                async for line in answer.aiter_lines():
                    if not line:
                        continue
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        raise _error_of(event["object"])
                    yield event["type"], event["object"]
        except httpx2.HTTPError as error:
            raise Unavailable(f"watch of {resource} at {self.cluster.server} broke: {error}") from error

    async def stream_text(self, path: str, query: Mapping[str, str] | None = None) -> AsyncGenerator[str]:
        """Yield the lines of a text answer as they come, until the server ends it; for logs.

        Nobody may write for long, so only the server's own limit ends a silence.
        """
        timeout = httpx2.Timeout(TEXT_SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        rest = b""
        try:
            async with self._http.stream(
                "GET", path, params=dict(query or {}), headers={"Accept": "text/plain, */*"}, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    _decode_answer(answer.status_code, await answer.aread())
                async for piece in answer.aiter_bytes():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
                    rest = rest[:TEXT_LINE_BYTES_MAX]
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded(f"GET {self.cluster.server}{path}: nothing came for {TEXT_SILENCE_SECONDS_MAX:.0f} s") from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"cannot reach {self.cluster.server}: {error}") from error
        if rest:
            yield rest.decode(errors="replace")

    async def follow(
        self,
        resource: ResourceName,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        table: bool = False,
        trouble: Callable[[FleetError | None], None] = lambda _error: None,
    ) -> AsyncGenerator[Followed]:
        """Yield the whole collection, then every change, for ever; with `table` rows instead of objects.

        `trouble` is told why nothing comes, and None once something does again.
        Close it (`contextlib.aclosing`) when leaving it early. A broken connection is resumed; an expired revision starts over with
        REPLACED. Errors that waiting cannot heal (denied, unknown resource) are raised.
        """
        version = ""
        failures = 0
        while True:
            try:
                if not version:
                    listing = await self.list(resource, namespace, labels=labels, fields=fields, table=table)
                    version = listing.resource_version
                    yield Followed("REPLACED", listing.items, listing.columns)
                chosen = {"resource_version": version, "labels": labels, "fields": fields}
                async with aclosing(self.watch(resource, namespace, **chosen, table=table)) as changes:
                    async for type, obj in changes:
                        if type == "OPENED":
                            trouble(None)
                            continue
                        failures = 0
                        version = obj["metadata"]["resourceVersion"]
                        if change := _CHANGES.get(type):  # a bookmark is none
                            yield Followed(change, tuple(obj["rows"]) if table else (obj,))
            except Expired:
                version = ""
            except FleetError as error:
                if not error.retryable and not isinstance(error, Unavailable):
                    raise
                trouble(error)
                await self._clock.sleep(FOLLOW_BACKOFF_SECONDS[min(failures, len(FOLLOW_BACKOFF_SECONDS) - 1)])
                failures += 1

    def path(self, ref: Ref) -> str:
        """Return the URL path of an object, or of its collection when the name is empty."""
        kind = self._registry.find(ref.resource)
        if kind is None:
            raise NotFound(f"resource {ref.resource!r} is not known")
        return resource_path(kind.resource, ref.namespace, ref.name)


def resource_path(resource: Resource, namespace: str = "", name: str = "") -> str:
    """Return `/apis/<group>/<version>[/namespaces/<ns>]/<plural>[/<name>]`; core kinds live below `/api`."""
    root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if resource.namespaced and namespace else ""
    return f"{root}{scope}/{resource.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _accept(table: bool) -> str:
    return TABLE if table else "application/json"


def _write_query(dry_run: bool, manager: str) -> dict[str, str]:
    query = {"fieldManager": manager, "fieldValidation": "Strict"}
    return {**query, "dryRun": "All"} if dry_run else query


def _decode_answer(status: int, content: bytes) -> Any:
    try:
        body = msgspec.json.decode(content) if content else {}
    except msgspec.DecodeError:
        body = {"message": content[:400].decode(errors="replace")}
    if status < 400:
        return body
    raise _error_of({"code": status, **(body if isinstance(body, dict) else {})})


def _error_of(status: Json) -> FleetError:
    """Return the error that a Kubernetes Status object stands for."""
    reason = status.get("reason") or _REASON_OF_CODE.get(status.get("code", 500), "InternalError")
    message = status.get("message") or f"the server answered {status.get('code')}"
    details = status.get("details") or {}
    kind = error_for_reason(reason)
    if kind is Invalid:
        causes = tuple(Cause(c.get("field", ""), c.get("message", ""), c.get("reason", "")) for c in details.get("causes", ()))
        return Invalid(message, causes)
    return kind(message)


_REASON_OF_CODE: Final = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid",
    429: "TooManyRequests", 503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip
