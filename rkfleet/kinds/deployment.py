"""ModelDeployment: N replicas of a template, placed on boards and rolled out in guarded steps."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rkfleet.kinds.base import Column, Condition, Object, Resource, Rule, StatusOwner
from rkfleet.kinds.board import Quantity, Toleration
from rkfleet.meta import LabelSelector, Struct

__all__ = [
    "ModelDeployment",
    "ModelDeploymentSpec",
    "ModelDeploymentStatus",
    "Placement",
    "Serving",
    "Strategy",
    "Template",
    "TemplateMeta",
]

IntOrPercent = Annotated[
    int | str,
    Meta(extra_json_schema={"x-kubernetes-int-or-string": True, "x-rkfleet-int-or-percent": True}),
]


class Serving(Struct, frozen=True, kw_only=True):
    """Load and serving parameters of a replica."""

    context_tokens: Annotated[int, Meta(description="Context window in tokens, prompt and answer together.", ge=16, le=1048576)] = 1024
    max_concurrent: Annotated[int, Meta(description="Requests that one replica works on at the same time.", ge=1, le=64)] = 1
    max_queued: Annotated[int, Meta(description="Requests that may wait; one more is answered 429.", ge=0, le=1024)] = 8
    max_output_tokens: Annotated[int, Meta(description="Most tokens of one answer; requests may ask for fewer.", ge=1, le=1048576)] = 512
    threads: Annotated[
        int, Meta(description="CPU threads of the runtime; 0 shares the board's cores less one among its replicas.", ge=0, le=256)
    ] = 0
    drain_seconds: Annotated[int, Meta(description="Seconds that running requests get to finish when a replica drains.", ge=0, le=3600)] = (
        30
    )
    load: Annotated[
        Literal["Eager", "OnDemand"],
        Meta(description="Eager loads the model as soon as its bytes are there; OnDemand when the first request asks for it."),
    ] = "Eager"
    idle_unload_seconds: Annotated[
        int,
        Meta(
            description="Seconds without a request after which the model is unloaded; the next request loads it again. 0 keeps it.",
            ge=0,
            le=31536000,
        ),
    ] = 0
    context_overflow: Annotated[
        Literal["Stop", "Shift"],
        Meta(
            description="What happens when prompt and answer fill the context: Stop ends the answer with finish reason length; Shift"
            " forgets the oldest tokens after the first keepTokens and goes on."
        ),
    ] = "Stop"
    keep_tokens: Annotated[
        int, Meta(description="Tokens at the start that a shift keeps; should cover the system prompt.", ge=0, le=1048576)
    ] = 0
    prompt_cache: Annotated[
        Quantity, Meta(description="Storage for saved prompts (their KV state) on the board; 0 saves none. Runtime rkllm.")
    ] = "0"
    runtime_version: Annotated[
        str,
        Meta(
            description="Comparisons that the runtime's version must meet besides the variant's, for example >=1.3.0; the newest version on"
            " the board that meets all is used.",
            max_length=128,
        ),
    ] = ""
    embed_flash: Annotated[
        bool, Meta(description="Read word embeddings from storage instead of holding them in memory. Runtime rkllm.")
    ] = False
    cpus: Annotated[
        str,
        Meta(
            description="CPUs of the runtime as a list, for example 4-7; empty for the four fast ones. Runtime rkllm.",
            pattern="^([0-9]{1,2}(-[0-9]{1,2})?(,[0-9]{1,2}(-[0-9]{1,2})?)*)?$",
            max_length=64,
        ),
    ] = ""
    iommu_domain: Annotated[
        int,
        Meta(
            description="First IOMMU domain of the NPU that the model is placed in; -1 lets the board choose. Runtime rkllm.", ge=-1, le=15
        ),
    ] = -1


class TemplateMeta(Struct, frozen=True, kw_only=True):
    """Metadata of the template."""

    annotations: Annotated[dict[str, str], Meta(description="Annotations; a change makes a new revision.")] = {}


class Template(Struct, frozen=True, kw_only=True):
    """What each replica runs. A change makes a new revision."""

    model: Annotated[str, Meta(description="Name of the Model, in the same namespace.", min_length=1, max_length=253)]
    metadata: Annotated[TemplateMeta, Meta(description="Metadata of the template.")] = TemplateMeta()
    variants: Annotated[
        tuple[str, ...],
        Meta(description="Variants that may be used, in order of preference; empty allows all, in the Model's order.", max_length=64),
    ] = ()
    serving: Annotated[Serving, Meta(description="Load and serving parameters.")] = Serving()


class Strategy(Struct, frozen=True, kw_only=True):
    """How a new revision replaces the old one."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!((self.maxUnavailable == 0 || self.maxUnavailable == '0%') && (self.maxSurge == 0 || self.maxSurge == '0%'))",
            "maxUnavailable and maxSurge must not both be 0",
            ".maxUnavailable",
        ),
    )

    max_unavailable: Annotated[
        IntOrPercent, Meta(description="Replicas that may be missing during a rollout, a number or a percentage (rounded down).")
    ] = 1
    max_surge: Annotated[
        IntOrPercent, Meta(description="Replicas that may run above the wanted number, a number or a percentage (rounded up).")
    ] = 0


class Placement(Struct, frozen=True, kw_only=True):
    """Where replicas may run."""

    board_selector: Annotated[LabelSelector, Meta(description="Boards that may be used; empty allows all.")] = LabelSelector()
    tolerations: Annotated[tuple[Toleration, ...], Meta(description="Taints that are tolerated.", max_length=32)] = ()
    board_lost_seconds: Annotated[
        int, Meta(description="Seconds without a session after which a board's replicas are replaced elsewhere.", ge=0, le=86400)
    ] = 300


class ModelDeploymentSpec(Struct, frozen=True, kw_only=True):
    """The wanted state."""

    # A rollout in which a replica waits to count would otherwise be reported as failed while all is well. Kubernetes has the same rule.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.progressDeadlineSeconds > self.minReadySeconds",
            "progressDeadlineSeconds must be greater than minReadySeconds",
            ".progressDeadlineSeconds",
        ),
    )

    template: Annotated[Template, Meta(description="What each replica runs.")]
    replicas: Annotated[int, Meta(description="Number of replicas.", ge=0, le=1000)] = 1
    served_model_name: Annotated[
        str, Meta(description="Name that OpenAI clients ask for; empty means the deployment's name.", max_length=128, pattern="^[^\\s]*$")
    ] = ""
    paused: Annotated[bool, Meta(description="True starts no new revision.")] = False
    min_ready_seconds: Annotated[
        int,
        Meta(
            description="Seconds that a replica must have been Ready before it counts as available; at least 2 are waited.", ge=0, le=86399
        ),
    ] = 0
    revision_history_limit: Annotated[int, Meta(description="Old revisions that are kept for undo.", ge=0, le=100)] = 5
    progress_deadline_seconds: Annotated[
        int, Meta(description="Seconds without progress after which a rollout is reported as failed.", ge=1, le=86400)
    ] = 600
    strategy: Annotated[Strategy, Meta(description="How a new revision replaces the old one.")] = Strategy()
    placement: Annotated[Placement, Meta(description="Where replicas may run.")] = Placement()


class ModelDeploymentStatus(Struct, frozen=True, kw_only=True):
    """What is known about a deployment."""

    observed_generation: Annotated[int, Meta(description="Generation of the spec that the status is about.")] = 0
    replicas: Annotated[int, Meta(description="Replicas that exist and are not draining.")] = 0
    updated_replicas: Annotated[int, Meta(description="Replicas of the newest revision.")] = 0
    ready_replicas: Annotated[int, Meta(description="Replicas that serve.")] = 0
    available_replicas: Annotated[int, Meta(description="Replicas that serve and count for the minimum available.")] = 0
    current_revision: Annotated[str, Meta(description="Revision that the last finished rollout reached.")] = ""
    update_revision: Annotated[str, Meta(description="Revision of today's template.")] = ""
    last_progress_time: Annotated[
        str, Meta(description="When the last rollout moved, to within a tenth of progressDeadlineSeconds; the deadline counts from it.")
    ] = ""
    collision_count: Annotated[int, Meta(description="Times a revision name had to be changed because another template had it.")] = 0
    selector: Annotated[str, Meta(description="Label selector of the deployment's replicas, as text.")] = ""
    conditions: Annotated[tuple[Condition, ...], Meta(description="Observations about the deployment.", max_length=32)] = ()


class ModelDeployment(Object, frozen=True, kw_only=True):
    """N replicas of a model on boards that fit, rolled out in guarded steps."""

    resource: ClassVar[Resource] = Resource(
        kind="ModelDeployment",
        plural="modeldeployments",
        singular="modeldeployment",
        short_names=("mdep",),
        categories=("all", "rkfleet"),
        scale=True,
        name_length_max=40,
        columns=(
            Column("Status", '.status.conditions[?(@.type=="Ready")].reason', "Reason of the Ready condition."),
            Column("Model", ".spec.template.model", "Model of the template."),
            Column("Desired", ".spec.replicas", "Wanted replicas.", "integer"),
            Column("Updated", ".status.updatedReplicas", "Replicas of the newest revision.", "integer"),
            Column("Available", ".status.availableReplicas", "Replicas that serve.", "integer"),
            Column("Revision", ".status.updateRevision", "Revision of today's template.", priority=1),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={
            "deployment": StatusOwner(
                fields=(
                    "observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "currentRevision",
                    "updateRevision", "lastProgressTime", "collisionCount", "selector",
                ),
                conditions=("Ready", "Available", "Progressing"),
            ),
        },
    )  # fmt: skip

    spec: Annotated[ModelDeploymentSpec, Meta(description="The wanted state.")]
    status: Annotated[ModelDeploymentStatus, Meta(description="What is known about the deployment.")] = ModelDeploymentStatus()
