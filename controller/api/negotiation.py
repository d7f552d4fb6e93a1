"""Which form of the answer a client accepts: the whole object, a table, or metadata only.

In: the Accept header. Out: a `Form`. Everything is JSON; typed clients that ask for protobuf name JSON as their second choice.

Source: Kubernetes API concepts, "Receiving resources as Tables" and "Metadata-only fetches".
"""

from __future__ import annotations

from typing import Literal

from controller.api.errors import NotAcceptable

__all__ = ["Form", "form_of", "wants_aggregated_discovery"]

Form = Literal["object", "table", "metadata"]

_JSON = ("application/json", "application/*", "*/*", "")


def form_of(accept: str) -> Form:
    """Return the first form in the Accept header that can be made.

    Raises:
        NotAcceptable: There is none.
    """
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        if media_type.lower() not in _JSON:
            continue
        values = dict(part.partition("=")[::2] for part in parameters)
        if values.get("q") in ("0", "0.0"):
            continue
        match values.get("as"), values.get("v"), values.get("g"):
            case None, _, _:
                return "object"
            case "Table", "v1", "meta.k8s.io":
                return "table"
            case "PartialObjectMetadata" | "PartialObjectMetadataList", "v1", "meta.k8s.io":
                return "metadata"
            case _:
                continue
    raise NotAcceptable(
        f"only application/json is served, also as Table or PartialObjectMetadata of meta.k8s.io/v1; asked was {accept[:200]!r}"
    )


def wants_aggregated_discovery(accept: str) -> bool:
    """Return whether discovery may be answered as one document for all groups, version v2."""
    for media_range in accept.split(","):
        parameters = {part.strip() for part in media_range.split(";")}
        if {"application/json", "g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"} <= parameters:
            return True
    return False
