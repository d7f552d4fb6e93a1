"""The built-in kind Namespace: a scope for names.

Source: Kubernetes `k8s.io/api/core/v1/types.go`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource, StatusOwner
from rkfleet.meta import Struct

__all__ = ["CONTENTS_FINALIZER", "Namespace", "NamespaceSpec", "NamespaceStatus"]

CONTENTS_FINALIZER: Final = "rkfleet.dev/contents"
"""Keeps a namespace that is being deleted until everything in it is gone; set by the API when a namespace is made."""


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    """What a namespace is."""

    finalizers: Annotated[tuple[str, ...], Meta(description="Work that must be done before the namespace is removed.")] = ()


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    """What is known about a namespace."""

    phase: Annotated[str, Meta(description="Active or Terminating; kubectl prints it.")] = "Active"


class Namespace(Object, frozen=True, kw_only=True):
    """A scope for names."""

    resource: ClassVar[Resource] = Resource(
        kind="Namespace", plural="namespaces", singular="namespace", namespaced=False, group="", version="v1", short_names=("ns",),
        name_length_max=63,
        columns=(
            Column("Status", ".status.phase", "Active or Terminating."),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={"namespace": StatusOwner(fields=("phase",))},
    )  # fmt: skip

    spec: Annotated[NamespaceSpec, Meta(description="What the namespace is.")] = NamespaceSpec()
    status: Annotated[NamespaceStatus, Meta(description="What is known about the namespace.")] = NamespaceStatus()
