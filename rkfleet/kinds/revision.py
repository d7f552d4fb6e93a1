"""ModelRevision: an immutable template of a deployment, as Kubernetes' ControllerRevision; data only."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, field

from rkfleet.kinds.base import Column, Object, Resource, Rule
from rkfleet.kinds.deployment import Template
from rkfleet.meta import Struct

__all__ = ["ModelRevision", "ModelRevisionSpec"]


class ModelRevisionSpec(Struct, frozen=True, kw_only=True):
    """The template as it was."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.template == oldSelf.template && self.modelUID == oldSelf.modelUID", "template and modelUID are immutable"),
    )

    template: Annotated[Template, Meta(description="Template of this revision.")]
    model_uid: Annotated[str, Meta(description="Uid of the Model when the revision was made.")] = field(name="modelUID")
    revision: Annotated[int, Meta(description="Number that orders the revisions of a deployment.", ge=1)]
    deployment_name: Annotated[str, Meta(description="Name of the ModelDeployment, in the same namespace.")]


class ModelRevision(Object, frozen=True, kw_only=True):
    """One template that a deployment had; made and pruned by the deployment loop."""

    resource: ClassVar[Resource] = Resource(
        kind="ModelRevision",
        plural="modelrevisions",
        singular="modelrevision",
        short_names=("mrev",),
        categories=("rkfleet",),
        status=False,
        columns=(
            Column("Deployment", ".spec.deploymentName", "Deployment that the revision belongs to."),
            Column("Revision", ".spec.revision", "Number of the revision.", "integer"),
            Column("Model", ".spec.template.model", "Model of the template."),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
    )

    spec: Annotated[ModelRevisionSpec, Meta(description="The template as it was.")]
