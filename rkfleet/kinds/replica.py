"""Replica: one slot of a deployment, one variant on one board. Written by controllers only."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rkfleet.kinds.base import Column, Condition, Object, Resource, Rule, StatusOwner
from rkfleet.meta import Struct

__all__ = ["Activation", "LastExit", "Measured", "Progress", "Replica", "ReplicaSpec", "ReplicaStatus"]

Activation = Literal["Staged", "Serving", "Draining"]
ExitReason = Literal["Crashed", "Killed", "OutOfMemory", "Hung", "LoadFailed"]


class ReplicaSpec(Struct, frozen=True, kw_only=True):
    """What should run."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(!has(oldSelf.boardName) || oldSelf.boardName == '' || (has(self.boardName) && self.boardName == oldSelf.boardName))"
            " && (!has(oldSelf.variantName) || oldSelf.variantName == ''"
            " || (has(self.variantName) && self.variantName == oldSelf.variantName))",
            "boardName and variantName are set once",
            ".boardName",
        ),
    )

    deployment_name: Annotated[str, Meta(description="ModelDeployment that owns the replica.")]
    revision_name: Annotated[str, Meta(description="ModelRevision that the replica runs.")]
    slot: Annotated[str, Meta(description="Slot of the deployment: the lowest free ordinal.")]
    board_name: Annotated[str, Meta(description="Board that the replica is placed on; set once by placement.")] = ""
    variant_name: Annotated[str, Meta(description="Variant that the board runs; set once by placement.")] = ""
    activation: Annotated[
        Activation,
        Meta(description="Staged: only the bytes. Serving: loaded and answering. Draining: finishes what runs, takes nothing new."),
    ] = "Serving"
    replaces: Annotated[str, Meta(description="Uid of the Replica whose place this one takes, on the same board if that can hold it.")] = ""


class Progress(Struct, frozen=True, kw_only=True):
    """How much of the artifact is on the board."""

    fetched_bytes: Annotated[int, Meta(description="Bytes that are on the board.", ge=0)] = 0
    total_bytes: Annotated[int, Meta(description="Bytes of the variant.", ge=0)] = 0


class Measured(Struct, frozen=True, kw_only=True):
    """Speed as the board measured it, two digits, written with a transition or every 60 seconds."""

    time_to_first_token_seconds: Annotated[
        float | None,
        Meta(description="Seconds from arrival at the agent to the first token, median of recent requests that found the model loaded."),
    ] = None
    decode_tokens_per_second: Annotated[
        float | None, Meta(description="Output tokens per second after the first, median of recent requests.")
    ] = None


class LastExit(Struct, frozen=True, kw_only=True):
    """How the worker process ended last."""

    reason: Annotated[ExitReason, Meta(description="Crashed, Killed, OutOfMemory, Hung or LoadFailed.")]
    message: Annotated[str, Meta(description="Sentence that says what is known.", max_length=4096)] = ""
    time: Annotated[str, Meta(description="When it ended.")] = ""


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """What is known about a replica."""

    observed_generation: Annotated[int, Meta(description="Generation of the spec that the board follows.")] = 0
    endpoint: Annotated[str, Meta(description="Base URL of the replica; clients append /v1/...")] = ""
    progress: Annotated[Progress | None, Meta(description="How much of the artifact is on the board.")] = None
    measured: Annotated[Measured | None, Meta(description="Speed as the board measured it.")] = None
    simulated: Annotated[
        bool, Meta(description="True when the board's hardware does not exist, so that `measured` is a figure of the benchmark table.")
    ] = False
    restarts: Annotated[int, Meta(description="Times that the worker was started again after an exit.", ge=0)] = 0
    last_exit: Annotated[LastExit | None, Meta(description="How the worker ended last.")] = None
    conditions: Annotated[tuple[Condition, ...], Meta(description="Observations about the replica.", max_length=32)] = ()


class Replica(Object, frozen=True, kw_only=True):
    """One slot of a deployment: one variant on one board, Staged, Serving or Draining."""

    resource: ClassVar[Resource] = Resource(
        kind="Replica",
        plural="replicas",
        singular="replica",
        short_names=("rep",),
        categories=("all", "rkfleet"),
        log=True,
        columns=(
            Column("Status", '.status.conditions[?(@.type=="Ready")].reason', "Reason of the Ready condition."),
            Column("Board", ".spec.boardName", "Board that the replica is placed on."),
            Column("Variant", ".spec.variantName", "Variant that the board runs."),
            Column("Activation", ".spec.activation", "Staged, Serving or Draining."),
            Column("Restarts", ".status.restarts", "Restarts of the worker.", "integer"),
            Column("Tokens/s", ".status.measured.decodeTokensPerSecond", "Decode speed that the board measured.", "number"),
            Column("Simulated", ".status.simulated", "Whether the board, and so the speed, is simulated.", "boolean"),
            Column("Revision", ".spec.revisionName", "Revision that the replica runs.", priority=1),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={
            "placement": StatusOwner(conditions=("Scheduled",)),
            "deployment": StatusOwner(conditions=("DisruptionTarget",)),
            "agent": StatusOwner(
                fields=("observedGeneration", "endpoint", "progress", "measured", "simulated", "restarts", "lastExit"),
                conditions=("ArtifactAvailable", "Loaded", "Drained", "Ready"),
            ),
            # Speaks for a board that cannot: only while it has no session, when the agent's reports do not come.
            "health": StatusOwner(conditions=("ArtifactAvailable", "Loaded", "Drained", "Ready")),
        },
    )

    spec: Annotated[ReplicaSpec, Meta(description="What should run.")]
    status: Annotated[ReplicaStatus, Meta(description="What is known about the replica.")] = ReplicaStatus()
