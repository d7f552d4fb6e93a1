"""HTTP for the clients of histories: objects as the API has them, and what each answer means for a history.

In: where servers are. Out: objects as `Seen`, outcomes. The objects are Models: the value is `spec.family` and a label goes with it, the
note is an annotation. A request that never left is refused; one without an answer, or with the answer that the server does not know, is
unknown.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import httpx2
import msgspec

from tests.support.history.records import Outcome, Seen, group_of
from tests.support.history.servers import Endpoint
from tests.support.stores import VARIANT

__all__ = ["MODELS", "Wire", "model_of", "note_of", "query_of", "seen_in"]

MODELS = "/apis/rkfleet.dev/v1alpha1/namespaces/default/models"
NOTE = "history/note"
ANSWER_SECONDS_MAX = 10.0  # Longer than any server of a history is down; a request without an answer by then is unknown.
SLOW_BUFFER_BYTES = 16384  # Of the socket of a watcher that stalls, so that the server notices.

_OUTCOMES: Mapping[str, Outcome] = {"NotFound": "absent", "AlreadyExists": "exists", "Conflict": "conflict", "Expired": "expired"}


class Wire:
    """Connections to one server."""

    def __init__(self, endpoint: Endpoint, *, slow: bool = False) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)] if slow else []
        self.http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(verify=endpoint.context, socket_options=options, trust_env=False),
            base_url=endpoint.url,
            headers={"authorization": f"Bearer {endpoint.token}"},
            timeout=ANSWER_SECONDS_MAX,
        )

    async def ask(self, method: str, path: str, body: Any = None, **params: Any) -> tuple[Outcome, Any]:
        """Send a request; return what came of it, and the decoded answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = await self.http.request(method, path, content=content, headers={"content-type": kind}, params=params)
        except httpx2.ConnectError:
            return "refused", None
        except httpx2.TransportError:
            return "unknown", None
        return outcome_of(response), msgspec.json.decode(response.content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()


def outcome_of(response: httpx2.Response) -> Outcome:
    """Return what an answer promises."""
    match response.status_code:
        case 200 | 201:
            return "ok"
        case 429:
            return "refused"
        case 500 | 503 | 504:
            return "unknown"
        case 404 | 409 | 410:
            return _OUTCOMES[msgspec.json.decode(response.content)["reason"]]
        case status:
            raise AssertionError(f"{response.request.method} {response.request.url} was answered with {status}: {response.text[:500]}")


def model_of(name: str, value: str, revision: int = 0, padding: int = 0) -> Any:
    """Return the object of a create or update."""
    metadata: dict[str, Any] = {"name": name, "labels": {"group": group_of(value)}}
    if padding:
        metadata["annotations"] = {"history/padding": "x" * padding}
    if revision:
        metadata["resourceVersion"] = str(revision)
    return {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "Model", "metadata": metadata, "spec": {"family": value, "variants": [VARIANT]}}


def note_of(value: str) -> Any:
    """Return the merge patch of a note."""
    return {"metadata": {"annotations": {NOTE: value}}}


def seen_in(obj: Any) -> Seen:
    """Return what an object of the API shows."""
    metadata = obj["metadata"]
    value, note = obj["spec"]["family"], metadata.get("annotations", {}).get(NOTE, "")
    assert metadata["labels"] == {"group": group_of(value)}, f"{metadata['name']} has value {value} and labels {metadata['labels']}"
    return Seen(metadata["name"], metadata["uid"], int(metadata["resourceVersion"]), value, note)


def query_of(selection: str) -> dict[str, str]:
    """Return the query parameters of a selection."""
    what, _, wanted = selection.partition("=")
    match what:
        case "name":
            return {"fieldSelector": f"metadata.name={wanted}"}
        case "group":
            return {"labelSelector": f"group={wanted}"}
        case _:
            return {}
