"""What the audit log is told about a request, and when.

In: the scope of a request that is over, its status and its error. Out: a record for `controller/audit.py`, which reaches this module as an
`Audit`. Called by the edge. Every write is told, and every refusal: nobody known (401), known but not allowed (403), guessed too often
(429), not audited (503). Reviews change nothing and are no writes.

Source: Kubernetes `staging/src/k8s.io/apiserver/pkg/apis/audit/v1/types.go` for the fields.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Scope

from controller.api.paths import Target
from controller.api.reviews import find_review, groups_of
from controller.api.roles import Identity
from controller.api.scope import IDENTITY, NOTES, TARGET, VERB
from rkfleet.clock import format_micro_time
from rkfleet.errors import FleetError, PermissionDenied

__all__ = ["Audit", "Record", "is_write", "record_of"]

Record = dict[str, Any]

TEXT_LENGTH_MAX: Final = 1_024  # Of each text that a client chooses: a line stays below 8 KiB.

_WRITES: Final = ("POST", "PUT", "PATCH", "DELETE")
_SHOWN: Final = frozenset((
    "allowWatchBookmarks", "continue", "dryRun", "fieldManager", "fieldSelector", "fieldValidation", "force", "gracePeriodSeconds",
    "labelSelector", "limit", "orphanDependents", "propagationPolicy", "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "watch",
))  # fmt: skip
"""Parameters whose values are shown; whatever else is sent might be a secret in the wrong place."""


class Audit(Protocol):
    """Where records go. No method blocks or raises."""

    def why_not(self) -> str:
        """Return why a write must be refused now; empty when its line will be kept."""
        ...

    def wrote(self, record: Record) -> None:
        """Keep the line of a write."""
        ...

    def refused(self, record: Record, address: str = "") -> None:
        """Keep the line of a refusal; those of one `address` within a second may become one."""
        ...


def is_write(scope: Scope) -> bool:
    """Return whether a request may change something."""
    return scope["method"] in _WRITES and find_review(scope["path"]) is None


def record_of(scope: Scope, *, audit_id: str, code: int, error: FleetError | None, received: datetime, completed: datetime) -> Record:
    """Return the record of a request that is over."""
    identity: Identity | None = scope.get(IDENTITY)
    target: Target | None = scope.get(TARGET)
    notes: dict[str, str] = dict(scope.get(NOTES, {}))
    name = notes.pop("name", "")
    forbidden = isinstance(error, PermissionDenied) or code in (401, 403)
    user = {"username": identity.name, "uid": identity.id, "groups": groups_of(identity)} if identity else _NOBODY
    annotations = {"authorization.k8s.io/decision": "forbid" if forbidden else "allow", **notes}
    if error is not None:
        annotations["authorization.k8s.io/reason" if forbidden else "rkfleet.dev/error"] = _text(error.message)
    return {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": audit_id,
        "stage": "ResponseComplete",
        "requestURI": _uri(scope),
        "verb": scope.get(VERB) or scope["method"].lower(),
        "user": user,
        "sourceIPs": [scope["client"][0]] if scope.get("client") else [],
        "userAgent": _text(Headers(scope=scope).get("user-agent", "")),
        **({"objectRef": _object(target, name)} if target else {}),
        "responseStatus": {"code": code, **({"reason": error.http_reason} if error else {})},
        "requestReceivedTimestamp": format_micro_time(received),
        "stageTimestamp": format_micro_time(completed),
        "annotations": annotations,
    }


_NOBODY: Final = {"username": "system:anonymous", "groups": ["system:unauthenticated"]}


def _object(target: Target, name: str) -> Record:
    resource = target.kind.resource
    fields = {
        "resource": resource.plural,
        "namespace": target.namespace,
        "name": target.name or name,
        "apiGroup": resource.group,
        "apiVersion": resource.version,
        "subresource": target.subresource,
    }
    return {field: value for field, value in fields.items() if value}


def _uri(scope: Scope) -> str:
    asked = scope.get("query_string", b"")[: 4 * TEXT_LENGTH_MAX].decode("ascii", "replace")
    pairs = (pair.partition("=") for pair in asked.split("&"))
    query = "&".join(f"{key}={value if key in _SHOWN else '-'}" for key, _, value in pairs if key)
    return _text(quote(scope["path"], safe="/:@") + (f"?{query}" if query else ""))


def _text(text: str) -> str:
    whole = text if len(text) <= TEXT_LENGTH_MAX else f"{text[: TEXT_LENGTH_MAX - 1]}…"
    return whole.encode("utf-8", "replace").decode()
