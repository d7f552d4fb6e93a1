"""The built-in kind Service, of which there are none: `kubectl cluster-info` looks for them and is content.

Source: Kubernetes `kubectl/pkg/cmd/clusterinfo/clusterinfo.go`.
"""

from __future__ import annotations

from typing import ClassVar

from rkfleet.kinds.base import Column, Object, Resource

__all__ = ["Service"]


class Service(Object, frozen=True, kw_only=True):
    """Never there: models are reached through a gateway, not through services of a cluster."""

    resource: ClassVar[Resource] = Resource(
        kind="Service", plural="services", singular="service", group="", version="v1", status=False, short_names=("svc",), read_only=True,
        columns=(Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),),
    )  # fmt: skip
