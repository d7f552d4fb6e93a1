"""Resource paths of the Kubernetes API, read into a `Target`: which kind, namespace, object and subresource a request names.

Pure. `app.py` reads every path below `/api/v1` and `/apis/<group>/<version>` through `parse_path`; handlers get the target.

Source: Kubernetes API concepts, "Resource URIs".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from rkfleet.kinds.base import Object, Registry
from rkfleet.meta import Ref

__all__ = ["Subresource", "Target", "parse_path"]

Subresource = Literal["", "status", "scale", "log"]

_OF_NAMESPACES: Final = ("status",)
"""What `/api/v1/namespaces/<name>/<here>` may be, when it is not the plural of a namespaced kind."""


class Target(msgspec.Struct, frozen=True):
    """What a path names.

    Attributes:
        kind: The kind; its `resource` says how it appears.
        namespace: Namespace in the path; empty for cluster-scoped kinds and for a collection over all namespaces.
        name: Name of the object; empty for a collection.
        subresource: Part of the object; empty for the object itself.
    """

    kind: type[Object]
    namespace: str = ""
    name: str = ""
    subresource: Subresource = ""

    @property
    def ref(self) -> Ref:
        """Name of the object in the store."""
        return Ref(self.kind.resource.name, self.namespace, self.name)


def parse_path(registry: Registry, group: str, version: str, parts: Sequence[str]) -> Target | None:
    """Return what the path segments after the group's version name, or None where nothing is served.

    `parts` are `<plural>[/<name>[/<subresource>]]`, for namespaced kinds after `namespaces/<namespace>`, for all namespaces without.
    """
    namespace = ""
    if len(parts) >= 3 and parts[0] == "namespaces" and not (group == "" and len(parts) == 3 and parts[2] in _OF_NAMESPACES):
        namespace, parts = parts[1], parts[2:]
        if not namespace:
            return None
    if not 1 <= len(parts) <= 3 or not all(parts):
        return None
    kind = registry.find(f"{parts[0]}.{group}" if group else parts[0])
    if kind is None or kind.resource.version != version:
        return None
    if bool(namespace) != kind.resource.namespaced and (namespace or len(parts) > 1):
        return None
    subresource = _subresource(kind, parts[2]) if len(parts) == 3 else ""
    if subresource is None:
        return None
    return Target(kind=kind, namespace=namespace, name=parts[1] if len(parts) > 1 else "", subresource=subresource)


def _subresource(kind: type[Object], word: str) -> Subresource | None:
    if word == "status" and kind.resource.status:
        return "status"
    if word == "scale" and kind.resource.scale:
        return "scale"
    if word == "log" and kind.resource.log:
        return "log"
    return None
