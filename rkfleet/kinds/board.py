"""Board: a machine that can run models. Made by enrolment, deleted by people, reported about by its own agent."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rkfleet.kinds.base import Column, Condition, Object, Resource, StatusOwner
from rkfleet.meta import Struct

__all__ = [
    "TAINT_DRAIN",
    "Allocatable",
    "AssignmentState",
    "Board",
    "BoardSpec",
    "BoardStatus",
    "Capacity",
    "DriverVersion",
    "RunningReplica",
    "Runtime",
    "SessionState",
    "Taint",
    "Toleration",
    "Tuning",
    "Versions",
]  # fmt: skip

Soc = Literal["rk3588", "rk3576", "cpu"]
TAINT_DRAIN = "rkfleet.dev/drain"  # Key of the taint that `rkfleet board drain` sets, with effect NoExecute.
Quantity = Annotated[str, Meta(extra_json_schema={"x-rkfleet-quantity": True})]


class Taint(Struct, frozen=True, kw_only=True):
    """A reason to keep replicas away that they must tolerate."""

    key: Annotated[str, Meta(description="Name of the taint.", min_length=1, max_length=316)]
    value: Annotated[str, Meta(description="Value that tolerations compare.", max_length=63)] = ""
    effect: Annotated[
        Literal["NoSchedule", "NoExecute"],
        Meta(
            description="NoSchedule: nothing new is placed on the board without a toleration. NoExecute: also, replicas that are there and"
            " do not tolerate it are moved to other boards, as a rollout moves them."
        ),
    ] = "NoSchedule"


class Toleration(Struct, frozen=True, kw_only=True):
    """Lets replicas be placed, and stay, on boards with a matching taint."""

    key: Annotated[str, Meta(description="Taint key; empty with operator Exists tolerates every taint.", max_length=316)] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="Equal compares the value, Exists does not.")] = "Equal"
    value: Annotated[str, Meta(description="Taint value for operator Equal.", max_length=63)] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "NoExecute"], Meta(description="Effect that is tolerated; empty tolerates every effect.")
    ] = ""


class Tuning(Struct, frozen=True, kw_only=True):
    """How the board's clocks are to run."""

    clocks: Annotated[
        Literal["Unmanaged", "Fixed"],
        Meta(
            description="Fixed runs CPU, NPU, GPU and memory at the frequencies of the vendor's fix_freq script for the chip, with which"
            " its benchmark table was measured; Unmanaged puts back what the agent changed and touches nothing else."
        ),
    ] = "Unmanaged"


class BoardSpec(Struct, frozen=True, kw_only=True):
    """What operators decide about a board."""

    unschedulable: Annotated[bool, Meta(description="True (cordoned) places nothing new on the board.")] = False
    taints: Annotated[tuple[Taint, ...], Meta(description="Taints that replicas must tolerate.", max_length=32)] = ()
    tuning: Annotated[Tuning, Meta(description="How the board's clocks are to run.")] = Tuning()


class Capacity(Struct, frozen=True, kw_only=True):
    """What the board has."""

    memory: Annotated[Quantity, Meta(description="All memory of the machine.")] = "0"
    storage: Annotated[Quantity, Meta(description="Size of the file system that holds the artifacts.")] = "0"
    npu_cores: Annotated[int, Meta(description="NPU cores; 0 on a CPU board.", ge=0, le=16)] = 0


class Allocatable(Struct, frozen=True, kw_only=True):
    """What replicas may use of it."""

    memory: Annotated[Quantity, Meta(description="Memory that replicas may reserve.")] = "0"
    storage: Annotated[Quantity, Meta(description="Bytes that artifacts may take.")] = "0"


class DriverVersion(Struct, frozen=True, kw_only=True):
    """The kernel driver of the NPU."""

    family: Annotated[str, Meta(description="rknpu (vendor) or rocket (mainline); empty without an NPU.")] = ""
    version: Annotated[str, Meta(description="Version of the driver, for example 0.9.8.")] = ""


class Versions(Struct, frozen=True, kw_only=True):
    """Versions of what runs on the board."""

    agent: Annotated[str, Meta(description="Version of the rkfleet agent.")] = ""
    kernel: Annotated[str, Meta(description="Release of the Linux kernel.")] = ""
    npu_driver: Annotated[DriverVersion, Meta(description="NPU driver.")] = DriverVersion()


class Runtime(Struct, frozen=True, kw_only=True):
    """A runtime that the agent can start."""

    name: Annotated[str, Meta(description="rkllm, rknn or llamacpp; what a variant's runtime must equal.")]
    version: Annotated[str, Meta(description="Version of the runtime library.")] = ""
    backend: Annotated[str, Meta(description="How it is run here: rkllm, rknn, llamacpp or simulated.")] = ""


class SessionState(Struct, frozen=True, kw_only=True):
    """Who holds the board's session; every write about the board is conditional on the number."""

    controller: Annotated[str, Meta(description="Identity of the controller process that took the session.")] = ""
    number: Annotated[int, Meta(description="Rises by one whenever a session is taken.", ge=0)] = 0


class AssignmentState(Struct, frozen=True, kw_only=True):
    """The board's whole desired state as minted and as accepted."""

    number: Annotated[int, Meta(description="Number of the latest assignment; rises when its content changes.", ge=0)] = 0
    sha256: Annotated[str, Meta(description="Hash of the exact bytes of that assignment.")] = ""
    accepted_number: Annotated[int, Meta(description="Number that the board has on disk and follows.", ge=0)] = 0
    message: Annotated[str, Meta(description="Why the board refused the latest assignment; empty when it accepted.")] = ""


class RunningReplica(Struct, frozen=True, kw_only=True):
    """Something that really runs on the board, also when no Replica asks for it any more."""

    replica: Annotated[str, Meta(description="Namespace and name of the replica.")]
    uid: Annotated[str, Meta(description="Uid of the Replica object.")] = ""
    memory: Annotated[Quantity, Meta(description="Memory that it was granted.")] = "0"


class BoardStatus(Struct, frozen=True, kw_only=True):
    """What is known about a board."""

    observed_generation: Annotated[int, Meta(description="Generation of the spec that the conditions are about.")] = 0
    soc: Annotated[str, Meta(description="System on chip: rk3588, rk3576, or cpu for a machine without an NPU.")] = ""
    simulated: Annotated[
        bool, Meta(description="True when the hardware, or what a runtime library needs of it, does not exist: figures are simulated.")
    ] = False
    capacity: Annotated[Capacity, Meta(description="What the board has.")] = Capacity()
    allocatable: Annotated[Allocatable, Meta(description="What replicas may use.")] = Allocatable()
    versions: Annotated[Versions, Meta(description="Versions of agent, kernel and NPU driver.")] = Versions()
    runtimes: Annotated[tuple[Runtime, ...], Meta(description="Runtimes that the agent can start.", max_length=16)] = ()
    serving_endpoint: Annotated[str, Meta(description="Base URL at which gateways reach the board.")] = ""
    session: Annotated[SessionState, Meta(description="Who holds the board's session.")] = SessionState()
    assignment: Annotated[AssignmentState, Meta(description="Desired state as minted and as accepted.")] = AssignmentState()
    running: Annotated[tuple[RunningReplica, ...], Meta(description="What really runs.", max_length=256)] = ()
    conditions: Annotated[tuple[Condition, ...], Meta(description="Observations about the board.", max_length=32)] = ()


class Board(Object, frozen=True, kw_only=True):
    """A machine: what it has, what runs there, whether it is in session."""

    resource: ClassVar[Resource] = Resource(
        kind="Board",
        plural="boards",
        singular="board",
        namespaced=False,
        short_names=("bd",),
        categories=("rkfleet",),
        name_length_max=63,
        log=True,
        columns=(
            Column("Status", '.status.conditions[?(@.type=="Ready")].reason', "Reason of the Ready condition."),
            Column("SoC", ".status.soc", "System on chip."),
            Column("Simulated", ".status.simulated", "Whether the hardware is simulated.", "boolean"),
            Column("Cordoned", ".spec.unschedulable", "Whether nothing new is placed on the board.", "boolean"),
            Column("Memory", ".status.allocatable.memory", "Memory that replicas may reserve."),
            Column("Assignment", ".status.assignment.acceptedNumber", "Accepted assignment number.", "integer", 1),
            Column("Endpoint", ".status.servingEndpoint", "Where gateways reach the board.", priority=1),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={
            "session": StatusOwner(fields=("session",)),
            "assignment": StatusOwner(fields=("assignment",)),
            "health": StatusOwner(fields=("observedGeneration",), conditions=("Ready",)),
            "identity": StatusOwner(conditions=("IdentityConflict",)),
            "agent": StatusOwner(
                fields=("soc", "simulated", "capacity", "allocatable", "versions", "runtimes", "servingEndpoint", "running"),
                conditions=("MemoryPressure", "DiskPressure", "LedgerDamaged", "NPUReady", "ThermalPressure", "ClocksPinned"),
            ),
        },
    )

    spec: Annotated[BoardSpec, Meta(description="What operators decide about the board.")] = BoardSpec()
    status: Annotated[BoardStatus, Meta(description="What is known about the board.")] = BoardStatus()
