"""Where a replica stands on this board, in the words of its conditions. Pure.

`agent/planning/plan.py` decides and picks one of these standings; `conditions_of` reads ArtifactAvailable, Loaded, Drained and Ready off
it. Every standing that does not answer says in one sentence why, and names one command that helps.
"""

from __future__ import annotations

import msgspec

from agent.planning.values import Abilities, Observed, Step
from agent.workers.base import WorkerState
from rkfleet import conditions
from rkfleet.assignment import AssignedFile, AssignedReplica
from rkfleet.conditions import Condition, Status, condition, explain

__all__ = ["Standing", "conditions_of"]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's standing.

    Attributes:
        reason: Condition reason.
        why: The sentence.
        command: The command that helps; empty where nothing needs help.
        steps: What brings it further.
        loaded: Whether the model is in memory.
        on_demand: Whether a request is let in although it is not, and loads it.
        note: What is to be said although it answers.
    """

    reason: str
    why: str
    command: str = ""
    steps: tuple[Step, ...] = ()
    loaded: bool = False
    on_demand: bool = False
    note: str = ""

    @property
    def answers(self) -> bool:
        """Whether clients get tokens at once; the one standing that does."""
        return self.reason == conditions.MODEL_LOADED


def _describe(replica: AssignedReplica) -> str:
    return f"rkfleet describe replica {replica.name} -n {replica.namespace}"


def _name(replica: AssignedReplica | None) -> str:
    return f"replica {replica.namespace}/{replica.name}" if replica else "a replica that was removed"


def fetching(replica: AssignedReplica, missing: tuple[AssignedFile, ...], observed: Observed, steps: tuple[Step, ...]) -> Standing:
    """Files are missing: on their way, failed, or thrown away after verification."""
    fetch = observed.fetches.get(replica.uid)
    thrown = next((observed.mismatched[file.digest] for file in missing if file.digest in observed.mismatched), "")
    if fetch is not None and fetch.reason:
        return Standing(reason=fetch.reason, why=fetch.message, command=_describe(replica), steps=steps)
    if thrown:
        return Standing(reason=conditions.DIGEST_MISMATCH, why=f"{thrown}; it is fetched again", command=_describe(replica), steps=steps)
    waits = fetch.message if fetch is not None and fetch.message else "fetching"
    why = f"{waits}: {', '.join(sorted(file.path for file in missing))}, {sum(file.size_bytes for file in missing)} bytes"
    return Standing(reason=conditions.FETCHING, why=why, command=f"rkfleet get replica {replica.name} -n {replica.namespace}", steps=steps)


def staged(replica: AssignedReplica) -> Standing:
    """Bytes are here and verified, and that is all that is wanted."""
    why = "its bytes are on the board and verified; the rollout has not activated it"
    return Standing(reason=conditions.STAGED, why=why, command=_describe(replica))


def runtime_missing(replica: AssignedReplica, abilities: Abilities) -> Standing:
    """The runtime of the variant cannot be started here."""
    if replica.runtime == "rknn":
        why = f"variant {replica.variant} has runtime rknn, which boards run only as a file with role encoder of an rkllm variant"
        return Standing(reason=conditions.RUNTIME_MISSING, why=why, command="rkfleet model push --help")
    installed = ((name, one.version or "of an unknown version") for name, all in sorted(abilities.libraries.items()) for one in all)
    have = ", ".join(f"{name} {version}" for name, version in installed) or "none"
    asked = (
        (replica.runtime_version, f"requires.runtimeVersion {replica.runtime_version}"),
        (replica.serving.runtime_version, f"serving.runtimeVersion {replica.serving.runtime_version}"),
    )
    wanted = " and ".join(words for version, words in asked if version)
    why = f"variant {replica.variant} needs runtime {replica.runtime}{wanted and f' ({wanted})'}, this board has {have}"
    return Standing(reason=conditions.RUNTIME_MISSING, why=why, command="rkfleet get boards -o yaml")


def no_reference_row(replica: AssignedReplica, soc: str, missing: str, steps: tuple[Step, ...]) -> Standing:
    """The runtime is simulated and the table has no speed for the variant on this chip."""
    if replica.reference_model:
        why = f"this board is simulated and has no speed for variant {replica.variant} of {replica.model}: {missing}"
    else:
        why = f"this board is simulated, and variant {replica.variant} of {replica.model} names no row of the benchmark table (reference)"
    return Standing(reason=conditions.NO_REFERENCE_ROW, why=why, command=f"rkfleet bench table --soc {soc}", steps=steps)


def waiting_for_predecessor(
    replica: AssignedReplica, before: AssignedReplica | None, steps: tuple[Step, ...], *, on_demand: bool = False
) -> Standing:
    """Memory or the place itself is still taken by a worker on its way out."""
    command = _describe(before) if before else _describe(replica)
    why = f"waits until the worker of {_name(before)} is gone, because both do not fit on the board together"
    return Standing(reason=conditions.WAITING_FOR_PREDECESSOR, why=why, command=command, steps=steps, on_demand=on_demand)


def waiting_for_memory(why: str, steps: tuple[Step, ...], *, on_demand: bool) -> Standing:
    """There is less memory now than the model reserves; it loads when there is enough."""
    return Standing(reason=conditions.WAITING_FOR_MEMORY, why=why, command="rkfleet top boards", steps=steps, on_demand=on_demand)


def no_npu_domain(replica: AssignedReplica, why: str, steps: tuple[Step, ...]) -> Standing:
    """The NPU has no IOMMU domain for it, or not the one that is asked for."""
    return Standing(reason=conditions.NO_NPU_DOMAIN, why=f"{replica.model} is not loaded: {why}", command=_describe(replica), steps=steps)


def unloaded(replica: AssignedReplica, steps: tuple[Step, ...]) -> Standing:
    """Bytes are here and the model is not in memory, because nobody needs it; a request loads it."""
    why = f"{replica.model} is on the board and not in memory; the next request loads it"
    return Standing(reason=conditions.UNLOADED, why=why, steps=steps, on_demand=True)


def loading(replica: AssignedReplica, steps: tuple[Step, ...], *, on_demand: bool = False) -> Standing:
    """Verified or being verified, started or about to be."""
    why = f"the worker is loading {replica.model}"
    return Standing(reason=conditions.LOADING, why=why, command=_describe(replica), steps=steps, on_demand=on_demand)


def ready(replica: AssignedReplica, steps: tuple[Step, ...], *, note: str = "") -> Standing:
    """The worker answers."""
    return Standing(reason=conditions.MODEL_LOADED, why=f"{replica.model} is loaded", steps=steps, loaded=True, note=note)


def stopping(replica: AssignedReplica, worker: WorkerState, steps: tuple[Step, ...]) -> Standing:
    """A worker of the same replica is still on its way out, or cannot be ended."""
    if worker.phase == "Stopping" and worker.failure is not None:
        return Standing(reason=worker.failure.reason, why=worker.failure.message, command=worker.failure.remedy, steps=steps)
    why = "its earlier worker is stopping"
    return Standing(reason=conditions.WORKER_STOPPED, why=why, command=_describe(replica), steps=steps)


def back_off(replica: AssignedReplica, worker: WorkerState, steps: tuple[Step, ...]) -> Standing:
    """The worker ended although it should run; the supervisor starts it again after a pause. A known failure has its own reason."""
    last = worker.last_exit
    known = worker.failure
    reason = conditions.LOAD_FAILED if last and last.reason == "LoadFailed" else conditions.CRASH_LOOP
    what = f"{last.reason}: {last.message}" if last else "unknown"
    why = f"the worker ended ({what}) and starts again after a pause"
    logs = f"rkfleet logs {replica.name} -n {replica.namespace}"
    return Standing(reason=known.reason if known else reason, why=why, command=known.remedy if known else logs, steps=steps)


def draining(replica: AssignedReplica, worker: WorkerState | None, *, cut: bool) -> Standing:
    """It takes nothing new and finishes what runs, or has done so."""
    seconds = replica.serving.drain_seconds
    if worker is not None:
        why = f"takes nothing new and finishes what runs, for at most {seconds} s"
        return Standing(reason=conditions.DRAINING, why=why, command=_describe(replica), loaded=worker.phase == "Ready")
    if cut:
        why = f"requests that ran longer than drainSeconds ({seconds} s) were cut and the worker is gone"
        return Standing(reason=conditions.DRAIN_DEADLINE, why=why, command=_describe(replica))
    return Standing(reason=conditions.DRAIN_COMPLETE, why="every request was finished and the worker is gone")


def conditions_of(replica: AssignedReplica, standing: Standing, *, complete: bool) -> tuple[Condition, ...]:
    """Return the conditions of a replica; `complete` says that all its files are in the cache."""
    message = explain(standing.why, standing.command)

    def one(type: str, status: Status, reason: str, text: str = "") -> Condition:
        return condition(type, status, reason, text, replica.generation)

    if complete:
        artifact = one(conditions.ARTIFACT_AVAILABLE, "True", conditions.FETCHED)
    else:
        artifact = one(conditions.ARTIFACT_AVAILABLE, "False", _artifact_reason(standing), message)
    loaded: Status = "True" if standing.loaded else "False"
    if replica.activation == "Draining":
        drained: Status = "False" if standing.reason == conditions.DRAINING else "True"
        return (
            artifact,
            one(conditions.LOADED, loaded, conditions.MODEL_LOADED if standing.loaded else conditions.WORKER_STOPPED, message),
            one(conditions.DRAINED, drained, standing.reason, message),
            one(conditions.READY, "False", conditions.DRAINING, message),
        )
    if standing.answers:
        note = explain(standing.note, _describe(replica)) if standing.note else ""
        return artifact, one(conditions.LOADED, loaded, standing.reason, note), one(conditions.READY, loaded, conditions.SERVING)
    if standing.on_demand:
        return artifact, one(conditions.LOADED, loaded, standing.reason, message), one(conditions.READY, "True", conditions.ON_DEMAND)
    return artifact, one(conditions.LOADED, loaded, standing.reason, message), one(conditions.READY, loaded, standing.reason, message)


def _artifact_reason(standing: Standing) -> str:
    of_files = {conditions.FETCHING, conditions.FETCH_FAILED, conditions.DIGEST_MISMATCH, conditions.DISK_FULL}
    return standing.reason if standing.reason in of_files else conditions.FETCHING
