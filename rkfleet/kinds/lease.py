"""The built-in kind Lease: who holds a role that only one may have at a time.

Source: Kubernetes `k8s.io/api/coordination/v1/types.go`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource
from rkfleet.meta import MicroTime, Struct

__all__ = ["Lease", "LeaseSpec"]


class LeaseSpec(Struct, frozen=True, kw_only=True):
    """Who holds it, and for how long without a sign."""

    holder_identity: Annotated[str, Meta(description="Who holds it; empty for nobody.")] = ""
    lease_duration_seconds: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="How long others wait after a renewal.")] = None
    acquire_time: Annotated[MicroTime | None, Meta(description="When the holder took it, with microseconds.")] = None
    renew_time: Annotated[MicroTime | None, Meta(description="When the holder renewed it last, with microseconds.")] = None
    lease_transitions: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="How often it changed hands.")] = None


class Lease(Object, frozen=True, kw_only=True):
    """A role that only one may have at a time."""

    resource: ClassVar[Resource] = Resource(
        kind="Lease", plural="leases", singular="lease", group="coordination.k8s.io", version="v1", status=False,
        columns=(
            Column("Holder", ".spec.holderIdentity", "Who holds it."),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
    )  # fmt: skip

    spec: Annotated[LeaseSpec, Meta(description="Who holds it, and for how long without a sign.")] = LeaseSpec()
