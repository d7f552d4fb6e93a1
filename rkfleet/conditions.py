"""Condition types, their reasons, and pure functions over conditions.

A condition type is a state in PascalCase with status True, False or Unknown; absence is Unknown. Every type and reason that rkfleet
writes is a constant here and nowhere else; `docs/reference/conditions.md` lists them and a test compares the two. A message is one
sentence that says why and, for a state that needs somebody, one command that helps: `explain` builds it.

Time enters as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from rkfleet.clock import format_time
from rkfleet.meta import Struct

__all__ = ["Condition", "Status", "advice", "condition", "explain", "find", "is_true", "merge", "shorten"]

Status = Literal["True", "False", "Unknown"]

# Types.
READY: Final = "Ready"
AVAILABLE: Final = "Available"
PROGRESSING: Final = "Progressing"
SCHEDULED: Final = "Scheduled"
ARTIFACT_AVAILABLE: Final = "ArtifactAvailable"
LOADED: Final = "Loaded"
DRAINED: Final = "Drained"
MEMORY_PRESSURE: Final = "MemoryPressure"
DISK_PRESSURE: Final = "DiskPressure"
DISRUPTION_TARGET: Final = "DisruptionTarget"
NPU_READY: Final = "NPUReady"
THERMAL_PRESSURE: Final = "ThermalPressure"
CLOCKS_PINNED: Final = "ClocksPinned"
IDENTITY_CONFLICT: Final = "IdentityConflict"
LEDGER_DAMAGED: Final = "LedgerDamaged"

# Reasons of Board Ready.
SESSION_OPEN: Final = "SessionOpen"
AWAITING_RECONNECT: Final = "AwaitingReconnect"
BOARD_LOST: Final = "BoardLost"
NEVER_CONNECTED: Final = "NeverConnected"

# Reasons of Board MemoryPressure and DiskPressure.
SUFFICIENT: Final = "Sufficient"
LOW_MEMORY: Final = "LowMemory"
DISK_FULL: Final = "DiskFull"

# Reasons of Board NPUReady.
NPU_USABLE: Final = "NPUUsable"
SMALL_MODELS_ONLY: Final = "SmallModelsOnly"
DRIVER_MISSING: Final = "DriverMissing"
DRIVER_TOO_OLD: Final = "DriverTooOld"
DRIVER_UNKNOWN: Final = "DriverUnknown"
MAINLINE_DRIVER: Final = "MainlineDriver"
NODE_MISSING: Final = "NodeMissing"
NODE_FORBIDDEN: Final = "NodeForbidden"
LEGACY_NODE_SYMLINK: Final = "LegacyNodeSymlink"
OTHER_NPU_CLIENT: Final = "OtherNPUClient"
RUNTIME_LIBRARY_UNKNOWN: Final = "RuntimeLibraryUnknown"

# Reasons of Board ThermalPressure.
THROTTLED: Final = "Throttled"
NOT_THROTTLED: Final = "NotThrottled"
TEMPERATURE_UNKNOWN: Final = "TemperatureUnknown"

# Reasons of Board ClocksPinned.
CLOCKS_FIXED: Final = "ClocksFixed"
CLOCKS_UNMANAGED: Final = "ClocksUnmanaged"
CLOCKS_LEFT: Final = "ClocksLeft"
CLOCKS_FORBIDDEN: Final = "ClocksForbidden"
CLOCK_MISSING: Final = "ClockMissing"
CLOCK_REFUSED: Final = "ClockRefused"
CLOCK_DIFFERS: Final = "ClockDiffers"
NO_CLOCK_PROFILE: Final = "NoClockProfile"
# Reasons of Board LedgerDamaged.
LEDGER_UNREADABLE: Final = "LedgerUnreadable"
LEDGER_INTACT: Final = "LedgerIntact"

# Reasons of Board IdentityConflict.
OTHER_MACHINE: Final = "OtherMachine"
OTHER_KEY: Final = "OtherKey"
SOLE_HOLDER: Final = "SoleHolder"

# Reasons of Model Ready.
ARTIFACTS_PRESENT: Final = "ArtifactsPresent"
ARTIFACT_MISSING: Final = "ArtifactMissing"
REGISTRY_UNAVAILABLE: Final = "RegistryUnavailable"

# Reasons of ModelDeployment Ready, Available and Progressing.
MINIMUM_AVAILABLE: Final = "MinimumReplicasAvailable"
MINIMUM_UNAVAILABLE: Final = "MinimumReplicasUnavailable"
ROLLOUT_COMPLETE: Final = "RolloutComplete"
ROLLING_OUT: Final = "RollingOut"
DEPLOYMENT_PAUSED: Final = "DeploymentPaused"
PROGRESS_DEADLINE_EXCEEDED: Final = "ProgressDeadlineExceeded"
MODEL_NOT_FOUND: Final = "ModelNotFound"
VARIANT_NOT_FOUND: Final = "VariantNotFound"
SURGE_IMPOSSIBLE: Final = "SurgeImpossible"
SERVED_NAME_TAKEN: Final = "ServedNameTaken"
SCALED_TO_ZERO: Final = "ScaledToZero"
REPLICAS_UNAVAILABLE: Final = "ReplicasUnavailable"
BOARD_DRAINING: Final = "BoardDraining"

# Reasons of Replica conditions.
PLACED: Final = "Placed"
NO_BOARD_FITS: Final = "NoBoardFits"
NO_BOARDS: Final = "NoBoards"
WAITING_FOR_PREDECESSOR: Final = "WaitingForPredecessor"
FETCHING: Final = "Fetching"
FETCHED: Final = "Fetched"
FETCH_FAILED: Final = "FetchFailed"
DIGEST_MISMATCH: Final = "DigestMismatch"
STAGED: Final = "Staged"
LOADING: Final = "Loading"
MODEL_LOADED: Final = "ModelLoaded"
LOAD_FAILED: Final = "LoadFailed"
CRASH_LOOP: Final = "CrashLoopBackOff"
RUNTIME_MISSING: Final = "RuntimeMissing"
UNLOADED: Final = "Unloaded"
ON_DEMAND: Final = "OnDemand"
WAITING_FOR_MEMORY: Final = "WaitingForMemory"
NO_NPU_DOMAIN: Final = "NoNPUDomain"
NO_REFERENCE_ROW: Final = "NoReferenceRow"
WORKER_STOPPED: Final = "WorkerStopped"
SERVING: Final = "Serving"
DRAINING: Final = "Draining"
DRAIN_COMPLETE: Final = "DrainComplete"
DRAIN_DEADLINE: Final = "DrainDeadlineReached"

# Reasons of known failures of boards with an NPU, in the order of the table in `agent/failures/modes.py`.
NPU_DRIVER_TOO_OLD: Final = "NpuDriverTooOld"
NPU_MEMORY_EXHAUSTED: Final = "NpuMemoryExhausted"
OUT_OF_MEMORY: Final = "OutOfMemory"
NPU_NOT_ACCESSIBLE: Final = "NpuNotAccessible"
MAINLINE_NPU_DRIVER: Final = "MainlineNpuDriver"
NPU_NODE_IS_A_LINK: Final = "NpuNodeIsALink"
PLATFORM_UNKNOWN: Final = "PlatformUnknown"
MODEL_FILE_REFUSED: Final = "ModelFileRefused"
LOAD_REPORTED_FALSELY: Final = "LoadReportedFalsely"
RUNTIME_ABI_MISMATCH: Final = "RuntimeAbiMismatch"
CONTEXT_ABOVE_MODEL_LIMIT: Final = "ContextAboveModelLimit"
PROMPT_TOO_LONG: Final = "PromptTooLong"
TOO_FEW_CPUS: Final = "TooFewCpus"
NPU_CONTENTION: Final = "NpuContention"
NPU_RESET: Final = "NpuReset"
ASYNC_RUN_LOST: Final = "AsyncRunLost"
CRASH_ON_NPU_MEMORY: Final = "CrashOnNpuMemory"
CPU_CLOCK_LOW: Final = "CpuClockLow"
THERMAL_THROTTLING: Final = "ThermalThrottling"
TOO_MANY_OPEN_FILES: Final = "TooManyOpenFiles"
OPENMP_MISSING: Final = "OpenMpMissing"
TUNING_WITHOUT_EFFECT: Final = "TuningWithoutEffect"
NPU_LOAD_UNKNOWN: Final = "NpuLoadUnknown"
ADAPTER_NOT_CONVERTED: Final = "AdapterNotConverted"
MODEL_NOT_UNLOADED: Final = "ModelNotUnloaded"


class Condition(Struct, frozen=True, kw_only=True):
    """One observation about an object. Absent means Unknown."""

    type: Annotated[str, Meta(description="Name of the state, PascalCase.", max_length=316)]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether the object is in the state.")]
    reason: Annotated[str, Meta(description="CamelCase constant that says why, for programs.", max_length=1024)]
    message: Annotated[str, Meta(description="One sentence that says why and one command that helps.", max_length=32768)] = ""
    last_transition_time: Annotated[str, Meta(description="When the status last changed.")] = ""
    observed_generation: Annotated[int, Meta(description="Generation of the spec that was looked at.")] = 0


def explain(why: str, command: str = "") -> str:
    """Return a condition message: one sentence that says why and one command that helps."""
    return f"{why.rstrip('.')}. Try: {command}" if command else why


def advice(message: str) -> tuple[str, str]:
    """Return the sentence of a condition message, without its full stop, and the command that helps; the inverse of `explain`."""
    why, _, command = message.partition(". Try: ")
    return why.rstrip("."), command


def shorten(why: str, length_max: int) -> str:
    """Return a list of reasons, cut at a comma or semicolon where it would be longer than `length_max` characters."""
    if len(why) <= length_max:
        return why
    cut = why[:length_max]
    end = max(cut.rfind(", "), cut.rfind("; "))
    return f"{cut[:end] if end > 0 else cut} and others"


def condition(type: str, status: Status, reason: str, message: str = "", observed_generation: int = 0) -> Condition:
    """Return a condition without a transition time; `merge` or the store gives it one."""
    return Condition(type=type, status=status, reason=reason, message=message, observed_generation=observed_generation)


def find(conditions: Iterable[Condition], type: str) -> Condition | None:
    """Return the condition of this type, or None."""
    for found in conditions:  # A plain loop: planners ask this a dozen times for each replica of a fleet, at every pass.
        if found.type == type:
            return found
    return None


def is_true(conditions: Iterable[Condition], type: str) -> bool:
    """Return whether the condition of this type is True."""
    found = find(conditions, type)
    return found is not None and found.status == "True"


def merge(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], removed: Iterable[str], now: datetime) -> list[dict[str, Any]]:
    """Return `old` with the conditions in `new` put in by type, and those of the types `removed` left out unless they are in `new`.

    `lastTransitionTime` moves to `now` only where the status differs; a condition that does not change keeps its place and bytes, so
    that merging the same conditions again changes nothing. All are JSON values, as stored.
    """
    wanted = {one["type"]: one for one in new}
    gone = set(removed) - set(wanted)
    merged: list[dict[str, Any]] = []
    for before in old:
        if before["type"] in gone:
            continue
        after = wanted.pop(before["type"], None)
        merged.append(before if after is None else _moved(before, after, now))
    merged.extend(_moved({}, after, now) for after in wanted.values())
    return merged


def _moved(before: dict[str, Any], after: dict[str, Any], now: datetime) -> dict[str, Any]:
    same = before.get("status") == after.get("status") and before.get("lastTransitionTime")
    return {**after, "lastTransitionTime": before["lastTransitionTime"] if same else format_time(now)}
