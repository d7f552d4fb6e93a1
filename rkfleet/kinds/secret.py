"""The built-in kinds that hold values for programs: Secret and ConfigMap.

Source: Kubernetes `k8s.io/api/core/v1/types.go`, https://kubernetes.io/docs/concepts/configuration/secret/
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource

__all__ = ["ConfigMap", "Secret"]


class Secret(Object, frozen=True, kw_only=True):
    """Values that are nobody's business, such as passwords and keys; encrypted where they are stored."""

    resource: ClassVar[Resource] = Resource(
        kind="Secret", plural="secrets", singular="secret", group="", version="v1", status=False,
        confidential=("data", "stringData", "metadata.annotations"),  # `kubectl apply` repeats the values in an annotation.
        columns=(
            Column("Type", ".type", "What the values are for."),
            Column("Data", ".data", "How many values there are.", "integer"),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
    )  # fmt: skip

    data: Annotated[dict[str, str], Meta(description="Values by key, in base64.")] = {}
    string_data: Annotated[
        dict[str, str], Meta(description="Values by key, as they are; write-only, put into data when the Secret is written.")
    ] = {}
    type: Annotated[str, Meta(description="What the values are for; never changes.")] = "Opaque"
    immutable: Annotated[bool | None, Meta(description="The values never change.")] = None


class ConfigMap(Object, frozen=True, kw_only=True):
    """Values that programs read."""

    resource: ClassVar[Resource] = Resource(
        kind="ConfigMap", plural="configmaps", singular="configmap", group="", version="v1", status=False, short_names=("cm",),
        columns=(
            Column("Data", ".data", "How many values there are.", "integer"),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
    )  # fmt: skip

    data: Annotated[dict[str, str], Meta(description="Values by key, text.")] = {}
    binary_data: Annotated[dict[str, str], Meta(description="Values by key, in base64; their keys are none of data.")] = {}
    immutable: Annotated[bool | None, Meta(description="The values never change.")] = None
